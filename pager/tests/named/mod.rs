//! Test functions that are listed by their own names.

/// A list of `(name, function)`. Each name is that of its function.
macro_rules! named {
    ($($function:ident),* $(,)?) => {
        [$((stringify!($function), $function)),*]
    };
}
