//! Own structs for structs of other crates, most of them KVM's, so that the layout of a state does
//! not follow theirs. Padding and reserved fields are not kept: KVM gets 0 for them.

/// A value with a counterpart in another crate.
pub trait Mirror<O> {
    /// The value of its counterpart.
    fn of(original: &O) -> Self;
    /// Its counterpart.
    fn original(&self) -> O;
}

macro_rules! values {
    ($($value:ty),*) => {$(
        impl Mirror<$value> for $value {
            fn of(original: &$value) -> Self {
                original.clone()
            }

            fn original(&self) -> $value {
                self.clone()
            }
        }
    )*};
}

values!(u8, u16, u32, u64, i64, Vec<u8>);

impl<O, T: Mirror<O>, const N: usize> Mirror<[O; N]> for [T; N] {
    fn of(original: &[O; N]) -> Self {
        original.each_ref().map(T::of)
    }

    fn original(&self) -> [O; N] {
        self.each_ref().map(T::original)
    }
}

/// Declares a struct whose fields have the names of its counterpart's. The list of the fields is
/// also its layout.
macro_rules! mirror {
    ($(#[$attribute:meta])* $name:ident of $original:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub(crate) struct $name {
            $(pub(crate) $field: $kind,)*
        }

        patina_snapshot::layout!($name { $($field: $kind,)* });

        impl $crate::persist::mirror::Mirror<$original> for $name {
            fn of(original: &$original) -> Self {
                Self { $($field: $crate::persist::mirror::Mirror::of(&original.$field),)* }
            }

            #[allow(clippy::needless_update, reason = "some have no padding")]
            fn original(&self) -> $original {
                $original {
                    $($field: $crate::persist::mirror::Mirror::original(&self.$field),)*
                    ..$original::default()
                }
            }
        }
    };
}

pub(crate) use mirror;
