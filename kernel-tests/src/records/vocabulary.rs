//! The word-level vocabulary: fewer than 256 words, so that a token is one byte.

use super::Error;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Padding behind `<eos>`.
pub const PAD: u8 = 0;
/// First token of every prompt.
pub const BOS: u8 = 1;
/// End of the response.
pub const EOS: u8 = 2;
/// A position that has not been decoded yet.
pub const MASK: u8 = 3;
/// What `tokenizer.json` gives for a word that is not listed.
pub const UNKNOWN: u8 = 4;

/// Size of the model's vocabulary: the embedding has this many rows, a few more than there are words.
pub const SIZE: usize = 256;

const SPECIAL: &str = "<pad> <bos> <eos> <mask> <unk>";

const GRAMMAR: &str = r#"of owns follows ; question : where does live ? what own whom follow please describe fully .
    leader chain from three steps sentence json lives in { } " , [ ] "name": "city": "owns": "follows": "chain":"#;

pub(super) const FIRST: &str = "Ada Ben Cleo Dan Eva Finn Gia Hugo Ida Jack Kira Leo Mia Nils Olga Paul Rosa Sven \
    Tara Uma Vera Will Xena Yara Zoe Adam Bela Carl Dora Emil Flora Georg Hanna Ivan Jana Karl Lena Max Nora Otto Petra \
    Ralf Sara Tom Ursa Viktor Wanda Xaver York Zelda Anton Berta Cora David Elsa Felix Greta Henry Irma Jonas Klara \
    Lukas Marta Noah";

pub(super) const LAST: &str = "Abbott Boyd Cole Drake Ellis Frost Grant Hale Irwin Jones Knox Lane Moore Nash Owens \
    Price Quinn Reed Stone Tate Upton Vance Wells Yates Zimmer Archer Baker Carver Dyer Eaton Fisher Glover Hunter Ivory \
    Joiner Keller Lister Mason Norris Osborn Porter Rowe Sawyer Tanner Usher Varley Weaver Young Ames Bell Clay Dunn \
    Early Ford Gray Hill Ingram Judd King Lowe March North Orr Park";

pub(super) const CITY: &str = "Lima Oslo Rome Cairo Paris Quito Delhi Tokyo Seoul Minsk Lagos Accra Dakar Tunis Rabat \
    Milan Turin Porto Berlin Vienna Prague Warsaw Zagreb Sofia Athens Ankara Tehran Hanoi Manila Sydney Havana Bogota";

pub(super) const COLOR: &str =
    "red blue green yellow black white brown pink purple orange silver golden violet amber ivory teal";

pub(super) const OBJECT: &str = "kite boat piano lamp clock chair table violin guitar drum bicycle wagon tent lantern \
    mirror basket ladder hammer anchor compass teapot kettle blanket carpet statue puppet camera radio wheel barrel \
    bucket trumpet";

struct Vocabulary {
    words: Vec<&'static str>,
    ids: HashMap<&'static str, u8>,
}

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let words: Vec<_> =
        [SPECIAL, GRAMMAR, FIRST, LAST, CITY, COLOR, OBJECT].iter().flat_map(|list| list.split_whitespace()).collect();
    let ids = words.iter().enumerate().map(|(id, &word)| (word, id as u8)).collect();
    Vocabulary { words, ids }
});

/// All words, by token id.
pub fn words() -> &'static [&'static str] {
    &VOCABULARY.words
}

/// The token of `word`.
pub fn id(word: &str) -> Option<u8> {
    VOCABULARY.ids.get(word).copied()
}

/// The word of `token`; `<unk>` for the ids that no word has.
pub fn word(token: u8) -> &'static str {
    words().get(usize::from(token)).copied().unwrap_or("<unk>")
}

/// The tokens of a word list.
pub(super) fn ids(list: &str) -> Vec<u8> {
    list.split_whitespace().filter_map(id).collect()
}

/// Text to tokens, without `<bos>`. Splits as `tokenizer.json` does: a special token, a quoted key with its colon, a
/// run of letters, or one other character; white space only separates.
pub fn encode(text: &str) -> Result<Vec<u8>, Error> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let word = &rest[..word_length(rest)];
        tokens.push(id(word).ok_or_else(|| Error::UnknownWord { word: word.to_string() })?);
        rest = rest[word.len()..].trim_start();
    }
    Ok(tokens)
}

fn word_length(text: &str) -> usize {
    if let Some(special) = SPECIAL.split_whitespace().find(|special| text.starts_with(special)) {
        return special.len();
    }
    if let Some(inside) = text.strip_prefix('"') {
        let key = inside.trim_start_matches(|c: char| c.is_ascii_lowercase());
        if key.len() < inside.len() && key.starts_with("\":") {
            return text.len() - key.len() + 2;
        }
    }
    match text.find(|c: char| !c.is_alphanumeric()) {
        Some(0) => text.chars().next().map_or(0, char::len_utf8),
        Some(end) => end,
        None => text.len(),
    }
}

/// Tokens to text that reads well: `Ada Abbott lives in Lima.`, `{"city": "Lima"}`, the three clauses of a record on
/// a line.
/// [`encode`] gives the same tokens back.
pub fn decode(tokens: &[u8]) -> String {
    let mut text = String::new();
    let mut inside_quotes = false;
    let mut glue = true;
    for (place, &token) in tokens.iter().enumerate() {
        let word = word(token);
        let closing = word == "\"" && inside_quotes;
        if !(glue || closing || matches!(word, ";" | ":" | "?" | "." | "," | "}" | "]")) {
            text.push(' ');
        }
        text.push_str(word);
        if word == "\"" {
            inside_quotes = !inside_quotes;
        }
        glue = match word {
            "\"" => inside_quotes,
            "{" | "[" => true,
            ";" if ends_a_record(&tokens[..place]) => {
                text.push('\n');
                true
            }
            _ => false,
        };
    }
    text
}

/// Whether a `;` behind `tokens` ends a record: the verb of the clause before the last is "owns" only there.
fn ends_a_record(tokens: &[u8]) -> bool {
    tokens.len().checked_sub(9).is_some_and(|verb| word(tokens[verb]) == "owns")
}

/// A response as a person reads it: up to `<eos>`, decoded.
pub fn decode_response(response: &[u8]) -> String {
    let end = response.iter().position(|&token| token == EOS).unwrap_or(response.len());
    decode(&response[..end])
}

/// The vocabulary as a `tokenizer.json` of the `tokenizers` library: word level, `<bos>` in front unless the caller
/// asks for no special tokens.
pub fn tokenizer_json() -> serde_json::Value {
    let special: Vec<_> = SPECIAL.split_whitespace().collect();
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, word)| {
            serde_json::json!({
                "id": id, "content": word, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let vocabulary: serde_json::Map<_, _> =
        words().iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": { "Regex": r#""[a-z]+":|\w+|[^\w\s]"# },
            "behavior": "Removed",
            "invert": true,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<bos>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [
                { "SpecialToken": { "id": "<bos>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 0 } },
            ],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [BOS], "tokens": ["<bos>"] } },
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    })
}
