//! Text to tokens. Words keep their dots, so that `ld.global.v2.u32`, `%tid.x` and `.reg` are one token each.

use crate::report::ParseError;

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind<'t> {
    /// A name, number, directive or dotted opcode.
    Word(&'t str),
    /// One character of punctuation.
    Mark(char),
    /// A quoted string; its content is never needed.
    Quoted,
}

/// One token and the line it is on, counted from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'t> {
    pub(crate) kind: Kind<'t>,
    pub(crate) line: u32,
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Splits `text` into tokens, dropping comments.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    let starts = |at: usize, with: &[u8]| bytes[at..].starts_with(with);
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\n' {
            line += 1;
            at += 1;
        } else if byte.is_ascii_whitespace() || byte == 0 {
            at += 1;
        } else if starts(at, b"//") {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
        } else if starts(at, b"/*") {
            let opened = line;
            at += 2;
            while !starts(at.min(bytes.len()), b"*/") {
                if at >= bytes.len() {
                    return Err(ParseError::new(text, opened, "this comment is never closed"));
                }
                line += u32::from(bytes[at] == b'\n');
                at += 1;
            }
            at += 2;
        } else if in_word(byte) {
            let start = at;
            // A double colon belongs to the word (`.L2::128B`); a single one ends a label.
            while at < bytes.len() && (in_word(bytes[at]) || starts(at, b"::")) {
                at += if bytes[at] == b':' { 2 } else { 1 };
            }
            tokens.push(Token { kind: Kind::Word(&text[start..at]), line });
        } else if byte == b'"' {
            let opened = line;
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                line += u32::from(bytes[at] == b'\n');
                at += 1;
            }
            if at == bytes.len() {
                return Err(ParseError::new(text, opened, "this string is never closed"));
            }
            at += 1;
            tokens.push(Token { kind: Kind::Quoted, line: opened });
        } else if b"@!,;:{}[]()<>=|+-*".contains(&byte) {
            tokens.push(Token { kind: Kind::Mark(char::from(byte)), line });
            at += 1;
        } else {
            return Err(ParseError::new(text, line, "this line has a character that is no part of PTX"));
        }
    }
    Ok(tokens)
}
