//! Questions and their answers. Each kind is three patterns: its question, its sentence and its JSON form.
//!
//! In a pattern, `name0` stands for the two tokens of the asked person's name, `name1` for the person followed by
//! them, and so on along the chain; `cityN` is one token, `thingN` two (color and object). Every other word is itself.

use super::vocabulary::{self, EOS, MASK, PAD};
use super::{Error, Person, QUESTION_TOKENS, RESPONSE_TOKENS, Records};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Where somebody lives.
    City,
    /// What somebody owns.
    Thing,
    /// Whom somebody follows.
    Follows,
    /// Everything in somebody's record.
    Profile,
    /// Whom somebody follows, where that person lives and what that person owns: two lookups, the second keyed by the
    /// result of the first.
    Leader,
    /// Three steps along the chain of followers and the last person's city: four lookups, one after the other.
    Chain,
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// In words; every position of the response is decoded.
    Sentence,
    /// As JSON; the punctuation and the keys are pinned (a structure prior), only the values are decoded.
    Json,
}

impl Kind {
    /// All kinds. The place in this list is the byte that stands for a kind in a training stream.
    pub const ALL: [Self; 6] = [Self::City, Self::Thing, Self::Follows, Self::Profile, Self::Leader, Self::Chain];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::City => "city",
            Self::Thing => "thing",
            Self::Follows => "follows",
            Self::Profile => "profile",
            Self::Leader => "leader",
            Self::Chain => "chain",
        }
    }

    fn question(self) -> &'static str {
        match self {
            Self::City => "question : where does name0 live ?",
            Self::Thing => "question : what does name0 own ?",
            Self::Follows => "question : whom does name0 follow ?",
            Self::Profile => "question : please describe name0 fully .",
            Self::Leader => "question : leader of name0 owns ?",
            Self::Chain => "question : chain from name0 three steps",
        }
    }

    fn answer(self, form: Form) -> &'static str {
        match (self, form) {
            (Self::City, Form::Sentence) => "name0 lives in city0 .",
            (Self::Thing, Form::Sentence) => "name0 owns thing0 .",
            (Self::Follows, Form::Sentence) => "name0 follows name1 .",
            (Self::Profile, Form::Sentence) => "name0 lives in city0 ; name0 owns thing0 ; name0 follows name1 .",
            (Self::Leader, Form::Sentence) => "name0 follows name1 ; name1 lives in city1 ; name1 owns thing1 .",
            (Self::Chain, Form::Sentence) => {
                "name0 follows name1 ; name1 follows name2 ; name2 follows name3 ; name3 lives in city3 ."
            }
            (Self::City, Form::Json) => r#"{ "name": " name0 " , "city": " city0 " }"#,
            (Self::Thing, Form::Json) => r#"{ "name": " name0 " , "owns": " thing0 " }"#,
            (Self::Follows, Form::Json) => r#"{ "name": " name0 " , "follows": " name1 " }"#,
            (Self::Profile, Form::Json) => {
                r#"{ "name": " name0 " , "city": " city0 " , "owns": " thing0 " , "follows": " name1 " }"#
            }
            (Self::Leader, Form::Json) => {
                r#"{ "name": " name0 " , "follows": { "name": " name1 " , "city": " city1 " , "owns": " thing1 " } }"#
            }
            (Self::Chain, Form::Json) => {
                r#"{ "chain": [ " name0 " , " name1 " , " name2 " , " name3 " ] , "city": " city3 " }"#
            }
        }
    }
}

impl Form {
    /// Both forms.
    pub const ALL: [Self; 2] = [Self::Sentence, Self::Json];

    /// Lower-case name; the word that asks for the form at the end of a question.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sentence => "sentence",
            Self::Json => "json",
        }
    }
}

/// A question about one person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub kind: Kind,
    /// How to answer.
    pub form: Form,
    /// The name of the person asked about.
    pub name: [u8; 2],
}

/// A response: 32 tokens, and which of them are values that come from the question or the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// The tokens, `<eos>` and padding included.
    pub tokens: [u8; RESPONSE_TOKENS],
    /// For each value, how many lookups, one after the other, lead to it: 0 for the name in the question. The other
    /// positions follow from kind and form alone.
    pub lookups: [Option<u8>; RESPONSE_TOKENS],
}

impl Question {
    /// The question's tokens, which end the prompt.
    pub fn tokens(&self) -> [u8; QUESTION_TOKENS] {
        let mut tokens = [PAD; QUESTION_TOKENS];
        let text = format!("{} {} :", self.kind.question(), self.form.name());
        let mut place = 0;
        for word in text.split_whitespace() {
            let value: &[u8] = match word {
                "name0" => &self.name,
                _ => &[word_id(word)],
            };
            tokens[place..place + value.len()].copy_from_slice(value);
            place += value.len();
        }
        tokens
    }

    /// Reads a question back from its tokens.
    pub fn parse(tokens: &[u8]) -> Result<Self, Error> {
        let name = tokens.get(4..6).map(|name| [name[0], name[1]]);
        let all = Kind::ALL.into_iter().flat_map(|kind| Form::ALL.map(|form| (kind, form)));
        name.and_then(|name| {
            all.map(|(kind, form)| Self { kind, form, name }).find(|question| question.tokens() == tokens)
        })
        .ok_or_else(|| Error::NotAQuestion { text: vocabulary::decode(tokens) })
    }

    /// The answer that the records give.
    pub fn answer(&self, records: &Records) -> Result<Response, Error> {
        let mut people = vec![*records.find(self.name)?];
        for _ in 0..last_hop(self.kind.answer(self.form)) {
            let follows = people[people.len() - 1].follows;
            people.push(match records.find(follows) {
                Ok(person) => *person,
                // The last person of a pattern may be named without being described.
                Err(missing) if self.kind != Kind::Follows && self.kind != Kind::Profile => return Err(missing),
                Err(_) => Person { name: follows, city: PAD, thing: [PAD; 2], follows: [PAD; 2] },
            });
        }
        Ok(fill(self.kind.answer(self.form), |hop| people[hop]))
    }

    /// What decoding starts from: all masks for a sentence, masks between pinned tokens for JSON.
    pub fn template(&self) -> [u8; RESPONSE_TOKENS] {
        match self.form {
            Form::Sentence => [MASK; RESPONSE_TOKENS],
            Form::Json => self.structure(),
        }
    }

    /// The response with a mask for each value.
    pub fn structure(&self) -> [u8; RESPONSE_TOKENS] {
        let nobody = Person { name: [MASK; 2], city: MASK, thing: [MASK; 2], follows: [MASK; 2] };
        fill(self.kind.answer(self.form), |_| nobody).tokens
    }
}

/// The pattern's placeholder that `word` is: what it asks for, and of which person of the chain.
fn placeholder(word: &str) -> Option<(&str, usize)> {
    let (field, hop) = word.split_at(word.len().saturating_sub(1));
    matches!(field, "name" | "city" | "thing").then(|| hop.parse().ok()).flatten().map(|hop| (field, hop))
}

fn last_hop(pattern: &str) -> usize {
    pattern.split_whitespace().filter_map(placeholder).map(|(_, hop)| hop).max().unwrap_or(0)
}

fn fill(pattern: &str, person: impl Fn(usize) -> Person) -> Response {
    let mut response = Response { tokens: [PAD; RESPONSE_TOKENS], lookups: [None; RESPONSE_TOKENS] };
    let mut place = 0;
    let mut push = |tokens: &[u8], lookups: Option<usize>| {
        for &token in tokens {
            response.tokens[place] = token;
            response.lookups[place] = lookups.map(|lookups| lookups as u8);
            place += 1;
        }
    };
    for word in pattern.split_whitespace() {
        match placeholder(word) {
            Some(("name", hop)) => push(&person(hop).name, Some(hop)),
            Some(("city", hop)) => push(&[person(hop).city], Some(hop + 1)),
            Some((_, hop)) => push(&person(hop).thing, Some(hop + 1)),
            None => push(&[word_id(word)], None),
        }
    }
    push(&[EOS], None);
    response
}

fn word_id(word: &str) -> u8 {
    vocabulary::id(word).unwrap_or(vocabulary::UNKNOWN)
}
