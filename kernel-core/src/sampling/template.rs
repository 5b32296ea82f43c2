//! Structure priors: the form of an answer, given before it is decoded.
//!
//! A masked-diffusion model fills any gap between given tokens (Dimple, arXiv 2505.16990: structure priors): whatever stands in the
//! response besides the mask token stays as it is. A [`Template`] is such a response, text and slots in turn.

use crate::Error;
use serde_json::Value;

/// Items of an array, at most: a response has no more tokens.
const MAX_ITEMS: u64 = 1024;

/// Fixed tokens and slots of masks, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Fixed(Vec<u32>),
    Slot(usize),
}

/// Lengths of slots in tokens, by what a JSON schema says of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLengths {
    /// A string without `maxLength`, and the bound of one with it: a token is at least a character.
    pub string: usize,
    /// A number.
    pub number: usize,
    /// An integer.
    pub integer: usize,
    /// Choices of `enum`, and `boolean`, get the tokens of the longest one; at most this many.
    pub choice: usize,
}

impl Default for SlotLengths {
    fn default() -> SlotLengths {
        SlotLengths { string: 16, number: 6, integer: 4, choice: 8 }
    }
}

impl Template {
    /// Nothing.
    pub fn new() -> Template {
        Template::default()
    }

    /// These tokens next.
    #[must_use]
    pub fn fixed(mut self, tokens: &[u32]) -> Template {
        match self.parts.last_mut() {
            Some(Part::Fixed(before)) => before.extend(tokens),
            _ => self.parts.push(Part::Fixed(tokens.to_vec())),
        }
        self
    }

    /// A slot of this many tokens next.
    #[must_use]
    pub fn slot(mut self, length: usize) -> Template {
        match self.parts.last_mut() {
            Some(Part::Slot(before)) => *before += length,
            _ => self.parts.push(Part::Slot(length)),
        }
        self
    }

    /// Text with slots in braces, `{12}` being one of twelve tokens; `{{` and `}}` are braces. `tokenize` gives the tokens
    /// of each text between slots.
    ///
    /// # Errors
    /// [`Error::Setting`] for a brace that does not belong to a slot, or a slot that is no number.
    pub fn from_text(text: &str, mut tokenize: impl FnMut(&str) -> Vec<u32>) -> Result<Template, Error> {
        let wrong = |message: String| Error::Setting { setting: "template", message };
        let (mut template, mut fixed, mut rest) = (Template::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            fixed.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                fixed.push_str(brace);
                rest = after;
                continue;
            }
            let Some((length, after)) = rest.split_once('}').filter(|_| brace == "{") else {
                return Err(wrong(format!(
                    "has a `{brace}` without its other half; write {brace}{brace} for the character"
                )));
            };
            let Ok(length) = length.parse::<usize>() else {
                return Err(wrong(format!("has the slot {{{length}}}; a slot is a number of tokens, as in {{8}}")));
            };
            if !fixed.is_empty() {
                template = template.fixed(&tokenize(&std::mem::take(&mut fixed)));
            }
            template = template.slot(length);
            rest = after;
        }
        fixed.push_str(rest);
        Ok(if fixed.is_empty() { template } else { template.fixed(&tokenize(&fixed)) })
    }

    /// The skeleton of a JSON value of this schema: braces, names and quotes are fixed, values are slots. `object` with
    /// `properties` (all of them, in the order in which `serde_json` keeps them: by name, unless its feature
    /// `preserve_order` is on), `array` with `items` and `minItems` (that many, else one), `string` with `maxLength`,
    /// `enum`, `const`, `number`, `integer`, `boolean` and `null` are understood.
    ///
    /// # Errors
    /// [`Error::Setting`] names the place of what is not.
    pub fn from_json_schema(
        schema: &Value,
        lengths: SlotLengths,
        mut tokenize: impl FnMut(&str) -> Vec<u32>,
    ) -> Result<Template, Error> {
        let mut pieces = Vec::new();
        describe(schema, "$", lengths, &mut tokenize, &mut pieces)?;
        let (mut template, mut fixed) = (Template::new(), String::new());
        for piece in pieces {
            match piece {
                Piece::Text(text) => fixed.push_str(&text),
                Piece::Slot(length) => {
                    template = template.fixed(&tokenize(&std::mem::take(&mut fixed))).slot(length);
                }
            }
        }
        Ok(if fixed.is_empty() { template } else { template.fixed(&tokenize(&fixed)) })
    }

    /// Tokens of the response.
    pub fn length(&self) -> usize {
        self.parts.iter().map(Part::length).sum()
    }

    /// The response before it is decoded, `length` tokens: the template, and masks to the end.
    ///
    /// # Errors
    /// [`Error::Setting`] where the template is longer.
    pub fn response(&self, mask_token: u32, length: usize) -> Result<Vec<u32>, Error> {
        let needed = self.length();
        if needed > length {
            let message =
                format!("has {needed} tokens, the response {length}; lengthen the response or shorten its slots");
            return Err(Error::Setting { setting: "template", message });
        }
        let mut tokens: Vec<u32> = self.parts.iter().flat_map(|part| part.tokens(mask_token)).collect();
        tokens.resize(length, mask_token);
        Ok(tokens)
    }
}

impl Part {
    fn length(&self) -> usize {
        match self {
            Part::Fixed(tokens) => tokens.len(),
            Part::Slot(length) => *length,
        }
    }

    fn tokens(&self, mask_token: u32) -> Vec<u32> {
        match self {
            Part::Fixed(tokens) => tokens.clone(),
            Part::Slot(length) => vec![mask_token; *length],
        }
    }
}

enum Piece {
    Text(String),
    Slot(usize),
}

fn describe(
    schema: &Value,
    place: &str,
    lengths: SlotLengths,
    tokenize: &mut impl FnMut(&str) -> Vec<u32>,
    pieces: &mut Vec<Piece>,
) -> Result<(), Error> {
    let wrong = |message: &str| Error::Setting { setting: "schema", message: format!("{place}: {message}") };
    let text = |pieces: &mut Vec<Piece>, text: &str| pieces.push(Piece::Text(text.into()));
    if let Some(value) = schema.get("const") {
        text(pieces, &value.to_string());
        return Ok(());
    }
    if let Some(choices) = schema.get("enum") {
        let choices = choices.as_array().filter(|choices| !choices.is_empty());
        let choices = choices.ok_or_else(|| wrong("enum must be a list with at least one value"))?;
        let longest = choices.iter().map(|choice| tokenize(&choice.to_string()).len()).max().unwrap_or(1);
        pieces.push(Piece::Slot(longest.min(lengths.choice)));
        return Ok(());
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let properties = properties.ok_or_else(|| wrong("an object needs its properties"))?;
            text(pieces, "{");
            for (i, (name, value)) in properties.iter().enumerate() {
                let separator = if i == 0 { "" } else { ", " };
                text(pieces, &format!("{separator}{}: ", Value::from(name.as_str())));
                describe(value, &format!("{place}.{name}"), lengths, tokenize, pieces)?;
            }
            text(pieces, "}");
        }
        Some("array") => {
            let items = schema.get("items").ok_or_else(|| wrong("an array needs its items"))?;
            let count = schema.get("minItems").and_then(Value::as_u64).unwrap_or(1);
            if count > MAX_ITEMS {
                return Err(wrong(&format!("minItems is {count}; at most {MAX_ITEMS} fit in a response")));
            }
            text(pieces, "[");
            for i in 0..count {
                text(pieces, if i == 0 { "" } else { ", " });
                describe(items, &format!("{place}[{i}]"), lengths, tokenize, pieces)?;
            }
            text(pieces, "]");
        }
        Some("string") => {
            let most = schema.get("maxLength").and_then(Value::as_u64).map_or(lengths.string, |most| most as usize);
            text(pieces, "\"");
            pieces.push(Piece::Slot(most.min(lengths.string)));
            text(pieces, "\"");
        }
        Some("number") => pieces.push(Piece::Slot(lengths.number)),
        Some("integer") => pieces.push(Piece::Slot(lengths.integer)),
        Some("boolean") => {
            let longest = ["true", "false"].map(|word| tokenize(word).len()).into_iter().max().unwrap_or(1);
            pieces.push(Piece::Slot(longest.min(lengths.choice)));
        }
        Some("null") => text(pieces, "null"),
        Some(other) => return Err(wrong(&format!("type {other} is not understood"))),
        None => return Err(wrong("has neither type, enum nor const")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MASK: u32 = 0;

    /// A token a character.
    fn characters(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    /// The response with `_` for masks.
    fn shown(template: &Template) -> String {
        let tokens = template.response(MASK, template.length()).unwrap();
        tokens.into_iter().map(|token| if token == MASK { '_' } else { char::from_u32(token).unwrap() }).collect()
    }

    #[test]
    fn text_has_slots_in_braces() {
        let template = |text| Template::from_text(text, characters);
        assert_eq!(shown(&template("Name: {4}, born {2}.").unwrap()), "Name: ____, born __.");
        assert_eq!(shown(&template("{{{3}}}").unwrap()), "{___}");
        assert_eq!(shown(&template("{1}{2}").unwrap()), "___");
        assert_eq!(template("").unwrap().length(), 0);
        for (text, part) in [("{a}", "{a}"), ("{", "`{`"), ("x}", "`}`"), ("{-1}", "{-1}"), ("{}", "{}")] {
            let error = template(text).unwrap_err().to_string();
            assert!(error.contains("template") && error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn schemas_become_skeletons() {
        let lengths = SlotLengths { string: 5, number: 4, integer: 2, choice: 6 };
        let skeleton = |schema| Template::from_json_schema(&schema, lengths, characters);
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string"}, "b": {"type": "string", "maxLength": 3}, "kind": {"const": "x"},
            "list": {"type": "array", "minItems": 2, "items": {"type": "integer"}},
            "pick": {"enum": ["no", "yes"]}, "flag": {"type": "boolean"}, "n": {"type": "number"}, "none": {"type": "null"},
        }});
        // Names come in the order in which the parser keeps them.
        let text = shown(&skeleton(schema).unwrap());
        for part in [
            "\"a\": \"_____\"",
            "\"b\": \"___\"",
            "\"kind\": \"x\"",
            "\"list\": [__, __]",
            "\"pick\": _____",
            "\"flag\": _____",
            "\"n\": ____",
            "\"none\": null",
        ] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        assert!(text.starts_with('{') && text.ends_with('}'), "{text}");
        for (schema, part) in [
            (json!({"type": "object"}), "$: an object needs"),
            (json!({"type": "object", "properties": {"a": {"type": "wish"}}}), "$.a: type wish"),
            (json!({"type": "array"}), "$: an array needs"),
            (json!({"type": "array", "items": {"type": "null"}, "minItems": 1025}), "$: minItems is 1025"),
            (json!({"enum": []}), "$: enum"),
            (json!(3), "$: has neither"),
        ] {
            let error = skeleton(schema).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_template_longer_than_the_response_is_refused() {
        let template = Template::new().fixed(&[5, 6]).slot(2).fixed(&[7]);
        assert_eq!(template.response(MASK, 7).unwrap(), [5, 6, 0, 0, 7, 0, 0]);
        let error = template.response(MASK, 4).unwrap_err().to_string();
        assert!(error.contains("has 5 tokens, the response 4"), "{error}");
    }
}
