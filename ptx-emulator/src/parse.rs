//! Tokens to syntax: entries with their parameters, shared variables, scopes, labels and statements. Nothing here knows
//! what an opcode means.

use std::collections::HashMap;

use crate::lex::{Kind, Token, tokens};
use crate::report::ParseError;
use crate::types::Type;

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'t> {
    /// A register, variable, label or special register.
    Name(&'t str),
    /// `!%p`.
    Not(&'t str),
    /// An integer, wrapped to 64 bits.
    Integer(u64),
    /// A floating-point literal.
    Float(f64),
    /// `0f…`: the bits of an f32.
    FloatBits(u32),
    /// `0d…`: the bits of an f64.
    DoubleBits(u64),
    /// `{a, b, …}`.
    Vector(Vec<Operand<'t>>),
    /// `[base + offset]`.
    Address(Box<Operand<'t>>, i64),
    /// `[base, {x, y, …}]`: a tensor and where in it.
    Tensor(Box<Operand<'t>>, Vec<Operand<'t>>),
    /// `a|b`.
    Pair(Box<Operand<'t>>, Box<Operand<'t>>),
}

/// One instruction as written.
#[derive(Debug)]
pub(crate) struct Statement<'t> {
    pub(crate) line: u32,
    /// Predicate register and whether it is negated.
    pub(crate) guard: Option<(&'t str, bool)>,
    pub(crate) opcode: &'t str,
    pub(crate) operands: Vec<Operand<'t>>,
    /// Index into [`Entry::scopes`].
    pub(crate) scope: usize,
}

/// A `{ … }` and what is declared in it.
#[derive(Debug, Default)]
pub(crate) struct Scope<'t> {
    pub(crate) parent: Option<usize>,
    registers: HashMap<&'t str, Type>,
    /// `%r<8>`: prefix, count, type.
    families: Vec<(&'t str, u32, Type)>,
    /// Statement index of each label.
    labels: HashMap<&'t str, usize>,
}

/// A kernel parameter in the packed buffer.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
}

/// A shared variable. A size of `None` means the dynamic part of the launch.
#[derive(Clone, Debug)]
pub(crate) struct SharedVariable<'t> {
    pub(crate) name: &'t str,
    pub(crate) align: u32,
    pub(crate) bytes: Option<u32>,
}

/// One kernel.
#[derive(Debug, Default)]
pub(crate) struct Entry<'t> {
    pub(crate) name: &'t str,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) shared: Vec<SharedVariable<'t>>,
    pub(crate) scopes: Vec<Scope<'t>>,
    pub(crate) statements: Vec<Statement<'t>>,
    /// `.reqntid`, missing dimensions as 1.
    pub(crate) required_block: Option<[u32; 3]>,
    /// `.maxntid` as a number of threads.
    pub(crate) max_threads: Option<u32>,
    /// `.maxnreg`
    pub(crate) max_registers: Option<u32>,
    /// `.minnctapersm`
    pub(crate) min_blocks: Option<u32>,
}

impl<'t> Entry<'t> {
    /// The scope and type of register `name` as seen from `scope`.
    pub(crate) fn register(&self, scope: usize, name: &str) -> Option<(usize, Type)> {
        self.climb(scope, |scope| {
            if let Some(ty) = scope.registers.get(name) {
                return Some(*ty);
            }
            let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let number: u32 = name[prefix.len()..].parse().ok()?;
            scope.families.iter().find(|(of, count, _)| *of == prefix && number < *count).map(|(_, _, ty)| *ty)
        })
    }

    /// The statement that label `name` stands before, as seen from `scope`.
    pub(crate) fn label(&self, scope: usize, name: &str) -> Option<usize> {
        self.climb(scope, |scope| scope.labels.get(name).copied()).map(|(_, at)| at)
    }

    fn climb<T>(&self, from: usize, find: impl Fn(&Scope<'t>) -> Option<T>) -> Option<(usize, T)> {
        let mut at = Some(from);
        while let Some(index) = at {
            let scope = self.scopes.get(index)?;
            if let Some(found) = find(scope) {
                return Some((index, found));
            }
            at = scope.parent;
        }
        None
    }
}

/// Parses a whole PTX module.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry<'_>>, ParseError> {
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, shared: Vec::new(), entries: Vec::new() };
    while parser.at < parser.tokens.len() {
        parser.module_item()?;
    }
    let Parser { shared, mut entries, .. } = parser;
    for entry in &mut entries {
        entry.shared.splice(0..0, shared.iter().cloned());
    }
    Ok(entries)
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Token<'t>>,
    at: usize,
    /// Shared variables of the module.
    shared: Vec<SharedVariable<'t>>,
    entries: Vec<Entry<'t>>,
}

type Parsed<T = ()> = Result<T, ParseError>;

impl<'t> Parser<'t> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(ParseError::new(self.text, self.line(), message))
    }

    fn peek(&self) -> Option<Kind<'t>> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn next(&mut self) -> Parsed<Kind<'t>> {
        match self.peek() {
            Some(kind) => {
                self.at += 1;
                Ok(kind)
            }
            None => self.error("the text ends in the middle of something"),
        }
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Kind::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Kind::Word(word));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Parsed {
        if self.accept(mark) {
            return Ok(());
        }
        self.error(format!("expected `{mark}` here"))
    }

    fn word(&mut self) -> Parsed<&'t str> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error("expected a name here"),
        }
    }

    fn number(&mut self) -> Parsed<u32> {
        let word = self.word()?;
        match integer(word).and_then(|value| u32::try_from(value).ok()) {
            Some(value) => Ok(value),
            None => self.error(format!("expected a number, found `{word}`")),
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
    }

    fn skip_until(&mut self, mark: char) -> Parsed {
        while self.next()? != Kind::Mark(mark) {}
        Ok(())
    }

    fn module_item(&mut self) -> Parsed {
        if self.accept(';') {
            return Ok(());
        }
        match self.word()? {
            ".version" | ".target" | ".address_size" | ".file" | ".loc" => {
                self.at -= 1;
                self.skip_line();
                Ok(())
            }
            ".section" => {
                self.word()?;
                self.skip_braces()
            }
            ".visible" | ".weak" | ".extern" => Ok(()),
            ".shared" => {
                let variable = self.shared_variable()?;
                self.shared.push(variable);
                Ok(())
            }
            ".entry" => self.entry(),
            other => {
                self.at -= 1;
                self.error(format!("`{other}` is not supported at module level"))
            }
        }
    }

    fn skip_braces(&mut self) -> Parsed {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Kind::Mark('{') => depth += 1,
                Kind::Mark('}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// After `.shared`: `.align 16 .b8 name[1024];`.
    fn shared_variable(&mut self) -> Parsed<SharedVariable<'t>> {
        let mut align = None;
        if self.accept_word(".align") {
            align = Some(self.alignment()?);
        }
        let ty = self.data_type()?;
        let name = self.word()?;
        let mut bytes = Some(ty.bytes());
        while self.accept('[') {
            if self.accept(']') {
                bytes = None;
                continue;
            }
            let count = self.number()?;
            self.expect(']')?;
            bytes = match bytes.map(|bytes| bytes.checked_mul(count)) {
                Some(None) => return self.error("this shared variable is larger than 4 GiB"),
                Some(product) => product,
                None => None,
            };
        }
        if self.peek() == Some(Kind::Mark('=')) {
            return self.error("shared variables cannot be initialised");
        }
        self.expect(';')?;
        Ok(SharedVariable { name, align: align.unwrap_or(ty.bytes().max(1)), bytes })
    }

    fn alignment(&mut self) -> Parsed<u32> {
        let align = self.number()?;
        if align.is_power_of_two() && align <= 4096 {
            return Ok(align);
        }
        self.error("an alignment is a power of two, at most 4096")
    }

    fn data_type(&mut self) -> Parsed<Type> {
        let word = self.word()?;
        match word.strip_prefix('.').and_then(Type::parse) {
            Some(ty) => Ok(ty),
            None => {
                self.at -= 1;
                self.error(format!("expected a type, found `{word}`"))
            }
        }
    }

    fn entry(&mut self) -> Parsed {
        let mut entry = Entry { name: self.word()?, ..Entry::default() };
        if self.accept('(') {
            while !self.accept(')') {
                self.parameter(&mut entry)?;
                self.accept(',');
            }
        }
        loop {
            if self.accept('{') {
                break;
            }
            match self.word()? {
                ".reqntid" => entry.required_block = Some(self.dimensions()?),
                ".maxntid" => {
                    let product = self.dimensions()?.iter().try_fold(1u32, |product, &n| product.checked_mul(n));
                    entry.max_threads = Some(product.unwrap_or(u32::MAX));
                }
                ".maxnreg" => entry.max_registers = Some(self.number()?),
                ".minnctapersm" => entry.min_blocks = Some(self.number()?),
                ".maxnctapersm" => {
                    self.number()?;
                }
                ".pragma" => self.skip_until(';')?,
                other => {
                    self.at -= 1;
                    return self.error(format!("the entry directive `{other}` is not supported"));
                }
            }
        }
        self.body(&mut entry)?;
        self.entries.push(entry);
        Ok(())
    }

    fn dimensions(&mut self) -> Parsed<[u32; 3]> {
        let mut dimensions = [1; 3];
        for (i, dimension) in dimensions.iter_mut().enumerate() {
            if i > 0 && !self.accept(',') {
                break;
            }
            *dimension = self.number()?;
        }
        Ok(dimensions)
    }

    /// `.param .u64 .ptr .global .align 16 name` or `.param .align 8 .b8 name[16]`.
    fn parameter(&mut self, entry: &mut Entry<'t>) -> Parsed {
        if !self.accept_word(".param") {
            return self.error("expected `.param` here");
        }
        let mut align = None;
        if self.accept_word(".align") {
            align = Some(self.alignment()?);
        }
        let ty = self.data_type()?;
        if self.accept_word(".ptr") {
            let _ = self.accept_word(".global") || self.accept_word(".shared") || self.accept_word(".const");
            if self.accept_word(".align") {
                self.alignment()?;
            }
        }
        let name = self.word()?.to_string();
        let mut bytes = ty.bytes().max(1);
        if self.accept('[') {
            bytes = match bytes.checked_mul(self.number()?) {
                Some(bytes) if bytes <= 32764 => bytes,
                _ => return self.error("kernel parameters have at most 32764 bytes"),
            };
            self.expect(']')?;
        }
        let align = align.unwrap_or(ty.bytes().max(1));
        let end = entry.parameters.last().map_or(0, |last| last.offset + last.bytes);
        let offset = end.next_multiple_of(align);
        if offset + bytes > 32764 {
            return self.error("kernel parameters have at most 32764 bytes");
        }
        entry.parameters.push(Parameter { name, offset, bytes });
        Ok(())
    }

    fn body(&mut self, entry: &mut Entry<'t>) -> Parsed {
        entry.scopes.push(Scope::default());
        let mut scope = 0;
        loop {
            if self.accept('{') {
                entry.scopes.push(Scope { parent: Some(scope), ..Scope::default() });
                scope = entry.scopes.len() - 1;
            } else if self.accept('}') {
                match entry.scopes[scope].parent {
                    Some(parent) => scope = parent,
                    None => return Ok(()),
                }
            } else if !self.accept(';') {
                self.body_item(entry, scope)?;
            }
        }
    }

    fn body_item(&mut self, entry: &mut Entry<'t>, scope: usize) -> Parsed {
        if let Some(Kind::Word(word)) = self.peek() {
            match word {
                ".reg" => {
                    self.at += 1;
                    return self.registers(&mut entry.scopes[scope]);
                }
                ".shared" => {
                    self.at += 1;
                    let variable = self.shared_variable()?;
                    entry.shared.push(variable);
                    return Ok(());
                }
                ".loc" | ".file" => {
                    self.skip_line();
                    return Ok(());
                }
                ".pragma" => return self.skip_until(';'),
                _ if word.starts_with('.') => return self.error(format!("`{word}` is not supported in a kernel")),
                _ => {}
            }
            if self.tokens.get(self.at + 1).map(|token| token.kind) == Some(Kind::Mark(':')) {
                if entry.scopes[scope].labels.insert(word, entry.statements.len()).is_some() {
                    return self.error(format!("the label `{word}` is declared twice"));
                }
                self.at += 2;
                return Ok(());
            }
        }
        let statement = self.statement(scope)?;
        entry.statements.push(statement);
        Ok(())
    }

    /// After `.reg`: `.b32 %r<8>, %other;`.
    fn registers(&mut self, scope: &mut Scope<'t>) -> Parsed {
        let ty = self.data_type()?;
        loop {
            let name = self.word()?;
            if self.accept('<') {
                let count = self.number()?;
                self.expect('>')?;
                scope.families.push((name, count, ty));
            } else {
                scope.registers.insert(name, ty);
            }
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    fn statement(&mut self, scope: usize) -> Parsed<Statement<'t>> {
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            guard = Some((self.word()?, negated));
        }
        let line = self.line();
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.accept(';') {
            if !operands.is_empty() {
                self.expect(',')?;
            }
            operands.push(self.operand(0)?);
        }
        Ok(Statement { line, guard, opcode, operands, scope })
    }

    fn operand(&mut self, depth: u32) -> Parsed<Operand<'t>> {
        if depth > 4 {
            return self.error("operands are nested too deeply");
        }
        let operand = match self.next()? {
            Kind::Mark('{') => {
                let mut elements = Vec::new();
                while !self.accept('}') {
                    if !elements.is_empty() {
                        self.expect(',')?;
                    }
                    elements.push(self.operand(depth + 1)?);
                }
                Operand::Vector(elements)
            }
            Kind::Mark('[') => {
                let base = self.operand(depth + 1)?;
                let mut offset = 0i64;
                while !self.accept(']') {
                    if offset == 0 && self.accept(',') {
                        let Operand::Vector(coordinates) = self.operand(depth + 1)? else {
                            return self.error("coordinates stand in braces");
                        };
                        self.expect(']')?;
                        return Ok(Operand::Tensor(Box::new(base), coordinates));
                    }
                    let negative = !self.accept('+');
                    if negative {
                        self.expect('-')?;
                    }
                    match self.operand(depth + 1)? {
                        Operand::Integer(value) if negative => offset = offset.wrapping_sub(value as i64),
                        Operand::Integer(value) => offset = offset.wrapping_add(value as i64),
                        _ => return self.error("an address is a register or variable plus an integer"),
                    }
                }
                Operand::Address(Box::new(base), offset)
            }
            Kind::Mark('!') => Operand::Not(self.word()?),
            Kind::Mark('-') => match self.operand(depth + 1)? {
                Operand::Integer(value) => Operand::Integer(value.wrapping_neg()),
                Operand::Float(value) => Operand::Float(-value),
                _ => return self.error("only a number can follow `-`"),
            },
            Kind::Word(word) => self.literal(word)?,
            Kind::Mark(_) | Kind::Quoted => {
                self.at -= 1;
                return self.error("expected an operand here");
            }
        };
        if self.accept('|') {
            return Ok(Operand::Pair(Box::new(operand), Box::new(self.operand(depth + 1)?)));
        }
        Ok(operand)
    }

    fn literal(&self, word: &'t str) -> Parsed<Operand<'t>> {
        if !word.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Operand::Name(word));
        }
        let hexadecimal = |prefixes: [&str; 2], digits: usize| {
            let rest = prefixes.iter().find_map(|prefix| word.strip_prefix(prefix))?;
            if rest.len() == digits { u64::from_str_radix(rest, 16).ok() } else { None }
        };
        if let Some(bits) = hexadecimal(["0f", "0F"], 8) {
            return Ok(Operand::FloatBits(bits as u32));
        }
        if let Some(bits) = hexadecimal(["0d", "0D"], 16) {
            return Ok(Operand::DoubleBits(bits));
        }
        if let Some(value) = integer(word) {
            return Ok(Operand::Integer(value));
        }
        match word.parse::<f64>() {
            Ok(value) => Ok(Operand::Float(value)),
            Err(_) => self.error(format!("`{word}` is not a number")),
        }
    }
}

/// An integer literal: decimal, `0x…`, `0b…` or octal, with an optional `U`.
fn integer(word: &str) -> Option<u64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    if let Some(hex) = word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Some(binary) = word.strip_prefix("0b").or(word.strip_prefix("0B")) {
        return u64::from_str_radix(binary, 2).ok();
    }
    if word.len() > 1 && word.starts_with('0') && word.bytes().all(|c| c.is_ascii_digit()) {
        return u64::from_str_radix(word, 8).ok();
    }
    word.parse().ok()
}
