//! An error with its causes: on one line, and searched.

use std::{error::Error, io};

/// An error and all its causes, as `what failed: why; what to do`.
///
/// The message of an error does not contain its source: this function adds it. What a message says
/// after its first "; " is advice, and stands behind the causes. A cause is left out if the message
/// ends with its words, as the messages of some libraries do.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let message = error.to_string();
    let Some(cause) = error.source().map(chain).filter(|cause| !message.ends_with(cause.as_str())) else {
        return message;
    };
    match message.split_once("; ") {
        Some((what, advice)) => format!("{what}: {cause}; {advice}"),
        None => format!("{message}: {cause}"),
    }
}

/// The first error of a type among an error and its causes. Transports wrap an error several times,
/// also in an [`io::Error`].
#[must_use]
pub fn find_cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = cause.downcast_ref().or_else(|| wrapped.and_then(|inner| inner.downcast_ref()));
        if found.is_some() {
            return found;
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn layers(texts: &[&'static str]) -> String {
        let error = texts.iter().rev().fold(None, |cause, text| Some(Box::new(Layer(text, cause))));
        chain(error.expect("an error").as_ref())
    }

    #[test]
    fn causes_follow_what_failed_and_advice_comes_last() {
        assert_eq!(layers(&["open a"]), "open a");
        assert_eq!(layers(&["open a; try b"]), "open a; try b");
        assert_eq!(layers(&["start", "open a", "no such file"]), "start: open a: no such file");
        assert_eq!(
            layers(&["start; see the log", "open a; create it", "no such file"]),
            "start: open a: no such file; create it; see the log"
        );
    }

    #[test]
    fn a_cause_whose_words_are_there_already_is_not_repeated() {
        assert_eq!(layers(&["open a: no such file", "no such file"]), "open a: no such file");
        assert_eq!(layers(&["start", "the disk is full", "the disk is full"]), "start: the disk is full");
    }
}
