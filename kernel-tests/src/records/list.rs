//! The list of records.

use super::vocabulary::{self, BOS};
use super::{Error, NAMES, RECORD_TOKENS, Random};
use std::sync::LazyLock;

/// One record: a person, by tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    /// First and last name. Neither is unique in a list; the pair is.
    pub name: [u8; 2],
    /// Where the person lives.
    pub city: u8,
    /// Color and object.
    pub thing: [u8; 2],
    /// The name of the person followed.
    pub follows: [u8; 2],
}

/// A list of records, in the order of the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The people.
    pub people: Vec<Person>,
}

struct Words {
    first: Vec<u8>,
    last: Vec<u8>,
    city: Vec<u8>,
    color: Vec<u8>,
    object: Vec<u8>,
    /// A record with zeros for its names and values.
    grammar: [[u8; RECORD_TOKENS / 3]; 3],
}

static WORDS: LazyLock<Words> = LazyLock::new(|| {
    let word = |text| vocabulary::id(text).unwrap_or(vocabulary::UNKNOWN);
    Words {
        first: vocabulary::ids(vocabulary::FIRST),
        last: vocabulary::ids(vocabulary::LAST),
        city: vocabulary::ids(vocabulary::CITY),
        color: vocabulary::ids(vocabulary::COLOR),
        object: vocabulary::ids(vocabulary::OBJECT),
        grammar: [
            [0, 0, word("lives"), word("in"), 0, word(";")],
            [0, 0, word("owns"), 0, 0, word(";")],
            [0, 0, word("follows"), 0, 0, word(";")],
        ],
    }
});

impl Person {
    /// The record's tokens: three clauses, each about this person.
    pub fn tokens(&self) -> [u8; RECORD_TOKENS] {
        let [mut lives, mut owns, mut follows] = WORDS.grammar;
        for clause in [&mut lives, &mut owns, &mut follows] {
            clause[0..2].copy_from_slice(&self.name);
        }
        lives[4] = self.city;
        owns[3..5].copy_from_slice(&self.thing);
        follows[3..5].copy_from_slice(&self.follows);
        let mut tokens = [0; RECORD_TOKENS];
        tokens.copy_from_slice([lives, owns, follows].as_flattened());
        tokens
    }

    fn parse(tokens: &[u8]) -> Option<Self> {
        let (&[lives, owns, follows], []) = tokens.as_chunks::<{ RECORD_TOKENS / 3 }>() else { return None };
        let [first, last, _, _, city, _] = lives;
        let [_, _, _, color, object, _] = owns;
        let [_, _, _, next_first, next_last, _] = follows;
        let person = Self { name: [first, last], city, thing: [color, object], follows: [next_first, next_last] };
        let words = &*WORDS;
        let known = [person.name, person.follows]
            .iter()
            .all(|[first, last]| words.first.contains(first) && words.last.contains(last));
        let known = known && words.city.contains(&city);
        let known = known && words.color.contains(&color) && words.object.contains(&object);
        (known && person.tokens() == *tokens).then_some(person)
    }
}

impl Records {
    /// A random list of `count` people: distinct names, every other value independent, and "follows" one random cycle
    /// through all of them.
    ///
    /// `names` first and as many last names occur. Few of them make a crowd in which half a name says little: the
    /// trainer asks for such lists, evaluation draws from all [`NAMES`]. At most `names²` people come back.
    pub fn random(random: &mut Random, count: usize, names: usize) -> Self {
        let words = &*WORDS;
        let pick = |random: &mut Random, from: &[u8]| from[random.below(from.len())];
        let (mut first, mut last) = (words.first.clone(), words.last.clone());
        random.shuffle_first(&mut first, names);
        random.shuffle_first(&mut last, names);
        let (first, last) = (&first[..names.min(NAMES)], &last[..names.min(NAMES)]);
        let mut names: Vec<[u8; 2]> =
            first.iter().flat_map(|&first| last.iter().map(move |&last| [first, last])).collect();
        random.shuffle_first(&mut names, count);
        names.truncate(count);
        let mut cycle: Vec<usize> = (0..names.len()).collect();
        random.shuffle_first(&mut cycle, names.len());
        let mut follows = vec![0; names.len()];
        for (place, &person) in cycle.iter().enumerate() {
            follows[person] = cycle[(place + 1) % cycle.len()];
        }
        let people = names
            .iter()
            .zip(&follows)
            .map(|(&name, &next)| Person {
                name,
                city: pick(random, &words.city),
                thing: [pick(random, &words.color), pick(random, &words.object)],
                follows: names[next],
            })
            .collect();
        Self { people }
    }

    /// The prompt up to the question: `<bos>` and every record.
    pub fn tokens(&self) -> Vec<u8> {
        std::iter::once(BOS).chain(self.people.iter().flat_map(Person::tokens)).collect()
    }

    /// Reads a list back from its tokens, with or without `<bos>`.
    pub fn parse(tokens: &[u8]) -> Result<Self, Error> {
        let tokens = tokens.strip_prefix(&[BOS]).unwrap_or(tokens);
        let parse = |(index, tokens): (usize, &[u8])| {
            Person::parse(tokens)
                .ok_or_else(|| Error::NotARecord { index, text: vocabulary::decode(tokens).trim().to_string() })
        };
        Ok(Self { people: tokens.chunks(RECORD_TOKENS).enumerate().map(parse).collect::<Result<_, _>>()? })
    }

    /// The person of that name.
    pub fn find(&self, name: [u8; 2]) -> Result<&Person, Error> {
        self.people
            .iter()
            .find(|person| person.name == name)
            .ok_or_else(|| Error::NoSuchPerson { name: vocabulary::decode(&name) })
    }
}
