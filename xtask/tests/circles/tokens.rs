//! Rust's tokens, as far as imports need them: words and marks, without comments, texts, characters
//! and lifetimes.

#[derive(Debug, PartialEq)]
pub enum Kind {
    Word(String),
    Mark(char),
    /// A text without its quotes.
    Text(String),
}

#[derive(Debug)]
pub struct Token {
    pub kind: Kind,
    pub line: usize,
}

/// The tokens of a file, and how far they are read.
pub struct Tokens {
    tokens: Vec<Token>,
    at: usize,
}

impl Tokens {
    pub fn of(source: &str) -> Tokens {
        let mut lexer = Lexer { rest: source, line: 1, tokens: Vec::new() };
        while lexer.token() {}
        Tokens { tokens: lexer.tokens, at: 0 }
    }

    pub fn next(&mut self) -> Option<&Token> {
        self.at += 1;
        self.tokens.get(self.at - 1)
    }

    /// The line of the next token.
    pub fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |token| token.line)
    }

    /// Takes the next token if it is this mark.
    pub fn mark(&mut self, mark: char) -> bool {
        let is_it = self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::Mark(mark));
        self.at += usize::from(is_it);
        is_it
    }

    /// Takes the next token if it is a word.
    pub fn word(&mut self) -> Option<String> {
        let Kind::Word(word) = &self.tokens.get(self.at)?.kind else { return None };
        self.at += 1;
        Some(word.clone())
    }

    /// Takes the next two colons, if they are there.
    pub fn colons(&mut self) -> bool {
        let is_colon = |at| self.tokens.get(at).is_some_and(|token: &Token| token.kind == Kind::Mark(':'));
        let are_there = is_colon(self.at) && is_colon(self.at + 1);
        self.at += if are_there { 2 } else { 0 };
        are_there
    }

    /// Takes the rest of a bracket that is open, as text.
    pub fn rest_of_bracket(&mut self) -> String {
        let (mut depth, mut text) = (1, String::new());
        while let Some(token) = self.next() {
            match &token.kind {
                Kind::Mark('(' | '[' | '{') => depth += 1,
                Kind::Mark(')' | ']' | '}') => depth -= 1,
                _ => {}
            }
            match &token.kind {
                _ if depth == 0 => break,
                Kind::Mark(mark) => text.push(*mark),
                Kind::Word(word) | Kind::Text(word) => text.push_str(word),
            }
        }
        text
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    /// Reads one token, or what is none. False at the end.
    fn token(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
        if self.rest.starts_with("//") {
            self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.comment();
        } else if let Some((start, end)) = self.text() {
            let text = self.rest[start..end].to_owned();
            self.push(Kind::Text(text));
            self.skip(end);
            self.skip(self.rest.find('"').map_or(0, |quote| quote + 1));
            self.skip(self.rest.len() - self.rest.trim_start_matches('#').len());
        } else if first == '\'' {
            self.skip(character(self.rest));
        } else if is_of_word(first) {
            // A raw name begins with `r#`.
            let raw = if self.rest.starts_with("r#") { 2 } else { 0 };
            let end = self.rest[raw..].find(|c| !is_of_word(c)).map_or(self.rest.len(), |end| raw + end);
            let word = self.rest[raw..end].to_owned();
            self.push(Kind::Word(word));
            self.skip(end);
        } else {
            if !first.is_whitespace() {
                self.push(Kind::Mark(first));
            }
            self.skip(first.len_utf8());
        }
        true
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    fn comment(&mut self) {
        let mut depth = 0;
        loop {
            let start = self.rest.starts_with("/*");
            depth += i32::from(start) - i32::from(self.rest.starts_with("*/"));
            let is_mark = start || self.rest.starts_with("*/");
            let Some(first) = self.rest.chars().next() else { return };
            self.skip(if is_mark { 2 } else { first.len_utf8() });
            if depth == 0 {
                return;
            }
        }
    }

    /// Where a text begins and ends, if one is next: `""`, `b""`, `c""`, and `r#""#` with any
    /// number of `#`.
    fn text(&self) -> Option<(usize, usize)> {
        let prefix = self.rest.find(|c| !"bcr".contains(c)).filter(|prefix| *prefix <= 2)?;
        let is_raw = self.rest[..prefix].contains('r');
        let marks = if is_raw { self.rest[prefix..].chars().take_while(|c| *c == '#').count() } else { 0 };
        let start = prefix + marks + 1;
        if self.rest.as_bytes().get(start - 1) != Some(&b'"') {
            return None;
        }
        let text = &self.rest[start..];
        let end = if is_raw {
            text.find(&format!("\"{}", "#".repeat(marks)))
        } else {
            let mut is_escaped = false;
            text.find(|c| {
                let is_end = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                is_end
            })
        };
        Some((start, start + end.expect("the end of a text")))
    }
}

/// The bytes of a character or a lifetime at the start of `rest`.
fn character(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    let first = characters.next().map(|(_, c)| c);
    let (at, second) = characters.next().unwrap_or((rest.len(), ' '));
    match first {
        // Another `'` may be what is escaped.
        Some('\\') => rest[at + second.len_utf8()..]
            .find('\'')
            .map_or(rest.len(), |end| at + second.len_utf8() + end + 1),
        _ if second == '\'' => at + 1,
        // A lifetime: its name is no name of a module.
        _ => rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(rest.len(), |end| end + 1),
    }
}
