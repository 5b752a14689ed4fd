//! Encodes and decodes values in a fixed layout.
//!
//! A value is written as its fields, one after the other, without padding, names or types. All
//! numbers are little-endian. [`layout!`](crate::layout!) lists the fields of a struct, so that
//! list is the table of its layout.
//!
//! | value | bytes |
//! | --- | --- |
//! | `u8`, `u16`, `u32`, `u64`, `i64` | 1, 2, 4, 8, 8 |
//! | `bool` | 1: 0 or 1 |
//! | `[T; N]` | those of T, N times |
//! | [`Blob<N>`] | N |
//! | `Option<T>` | a `bool`, then those of T if it is 1 |
//! | `Vec<T>` | a `u32`, the number of items, then the items |
//!
//! A decoder never trusts a number of items: it reads no more than there are bytes for, and no more
//! than [`Item::MOST`].

/// Why bytes are not a value in the expected layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The bytes end within the value.
    #[error("it ends at byte {at}, and {missing} more bytes are expected")]
    Short {
        /// How many bytes there are.
        at: usize,
        /// How many more the next field needs.
        missing: usize,
    },
    /// There are bytes after the value.
    #[error("it should end at byte {at}, and has {more} more bytes")]
    Long {
        /// Where the value ends.
        at: usize,
        /// How many bytes follow.
        more: usize,
    },
    /// A list has more items than it may have.
    #[error("it has {found} {what}; the limit is {most}")]
    Many {
        /// What the list consists of.
        what: &'static str,
        /// How many items it has.
        found: u32,
        /// How many it may have.
        most: usize,
    },
    /// A number stands for nothing.
    #[error("byte {at}: {found} is not a {what}")]
    Value {
        /// Where the number is.
        at: usize,
        /// What it should stand for.
        what: &'static str,
        /// The number.
        found: u8,
    },
}

/// Appends values to bytes.
#[derive(Debug, Default)]
pub struct Encoder(pub(crate) Vec<u8>);

impl Encoder {
    /// Appends bytes as they are.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Takes values from bytes.
#[derive(Debug)]
pub struct Decoder<'a> {
    left: &'a [u8],
    /// How many bytes there were.
    length: usize,
}

impl<'a> Decoder<'a> {
    /// Begins at the first of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes, length: bytes.len() }
    }

    /// Takes the next `N` bytes as they are.
    ///
    /// # Errors
    /// [`LayoutError::Short`].
    #[inline]
    pub fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], LayoutError> {
        let Some((taken, left)) = self.left.split_first_chunk() else {
            return Err(LayoutError::Short { at: self.length, missing: N - self.left.len() });
        };
        self.left = left;
        Ok(taken)
    }

    /// Takes a byte that stands for something.
    ///
    /// # Errors
    /// [`LayoutError::Short`]. [`LayoutError::Value`]: `meaning` has nothing for the byte.
    pub fn code<T>(
        &mut self,
        what: &'static str,
        meaning: impl FnOnce(u8) -> Option<T>,
    ) -> Result<T, LayoutError> {
        let at = self.at();
        let [found] = *self.take()?;
        meaning(found).ok_or(LayoutError::Value { at, what, found })
    }

    /// Checks that all bytes were taken.
    ///
    /// # Errors
    /// [`LayoutError::Long`].
    pub fn end(&self) -> Result<(), LayoutError> {
        match self.left.len() {
            0 => Ok(()),
            more => Err(LayoutError::Long { at: self.at(), more }),
        }
    }

    fn at(&self) -> usize {
        self.length - self.left.len()
    }
}

/// A value with a fixed layout.
pub trait Layout: Sized {
    /// Appends the value.
    fn encode(&self, to: &mut Encoder);

    /// Takes the value. It has the right form; whether it makes sense is for its user to check.
    ///
    /// # Errors
    /// See [`LayoutError`].
    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError>;
}

/// A value of which there can be a list.
pub trait Item: Layout {
    /// What a list of them consists of, in words.
    const WHAT: &'static str;
    /// The greatest number of them in one list.
    const MOST: usize;
}

/// A value alone in its bytes, encoded.
#[must_use]
pub fn to_bytes(value: &impl Layout) -> Vec<u8> {
    let mut to = Encoder::default();
    value.encode(&mut to);
    to.0
}

/// Decodes a value that is alone in its bytes.
///
/// # Errors
/// See [`LayoutError`].
pub fn from_bytes<T: Layout>(bytes: &[u8]) -> Result<T, LayoutError> {
    let mut from = Decoder::new(bytes);
    let value = T::decode(&mut from)?;
    from.end()?;
    Ok(value)
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Layout for $number {
            #[inline]
            fn encode(&self, to: &mut Encoder) {
                to.put(&self.to_le_bytes());
            }

            #[inline]
            fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
                Ok(Self::from_le_bytes(*from.take()?))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i64);

impl Layout for bool {
    fn encode(&self, to: &mut Encoder) {
        u8::from(*self).encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        from.code("truth value", |byte| match byte {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        })
    }
}

impl<T: Layout + Copy + Default, const N: usize> Layout for [T; N] {
    #[inline]
    fn encode(&self, to: &mut Encoder) {
        self.iter().for_each(|item| item.encode(to));
    }

    #[inline]
    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        let mut items = [T::default(); N];
        for item in &mut items {
            *item = T::decode(from)?;
        }
        Ok(items)
    }
}

impl<T: Layout> Layout for Option<T> {
    fn encode(&self, to: &mut Encoder) {
        self.is_some().encode(to);
        if let Some(value) = self {
            value.encode(to);
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        bool::decode(from)?.then(|| T::decode(from)).transpose()
    }
}

impl<T: Item> Layout for Vec<T> {
    fn encode(&self, to: &mut Encoder) {
        // A list that is too long to count is too long for its reader as well.
        u32::try_from(self.len()).unwrap_or(u32::MAX).encode(to);
        self.iter().for_each(|item| item.encode(to));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        let found = u32::decode(from)?;
        let count = usize::try_from(found).unwrap_or(usize::MAX);
        if count > T::MOST {
            return Err(LayoutError::Many { what: T::WHAT, found, most: T::MOST });
        }
        // Each item takes at least a byte.
        if count > from.left.len() {
            return Err(LayoutError::Short { at: from.length, missing: count - from.left.len() });
        }
        let mut items = Self::with_capacity(count);
        for _ in 0..count {
            items.push(T::decode(from)?);
        }
        Ok(items)
    }
}

/// Text or other bytes of any length.
impl Item for u8 {
    const WHAT: &'static str = "bytes";
    const MOST: usize = usize::MAX;
}

/// Bytes that only the kernel reads, as many as its interface has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Blob<const N: usize>(pub [u8; N]);

impl<const N: usize> std::fmt::Debug for Blob<N> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{N} bytes")
    }
}

impl<const N: usize> Layout for Blob<N> {
    fn encode(&self, to: &mut Encoder) {
        to.put(&self.0);
    }

    #[inline]
    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        Ok(Self(*from.take()?))
    }
}

/// Implements [`Layout`](crate::layout::Layout) for a struct, from the list of its fields in the
/// order in which they are written.
#[macro_export]
macro_rules! layout {
    ($name:ty { $($field:tt: $kind:ty),* $(,)? }) => {
        impl $crate::layout::Layout for $name {
            #[inline]
            fn encode(&self, to: &mut $crate::layout::Encoder) {
                $(<$kind as $crate::layout::Layout>::encode(&self.$field, to);)*
            }

            #[inline]
            fn decode(
                from: &mut $crate::layout::Decoder<'_>,
            ) -> ::std::result::Result<Self, $crate::layout::LayoutError> {
                Ok(Self { $($field: <$kind as $crate::layout::Layout>::decode(from)?),* })
            }
        }
    };
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
