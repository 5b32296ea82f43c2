//! `config.json`.

use super::Error;
use ptx::{Arch, KernelSpec, SpecError, SpecErrors, isa::MmaType, kernels::model::RopeSpec};
use serde_json::{Map, Value};
use std::path::Path;

/// Shape of a model in Qwen2's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream (`hidden_size`).
    pub hidden: usize,
    /// Width of the feed-forward layers (`intermediate_size`).
    pub intermediate: usize,
    /// Layers (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`).
    pub kv_heads: usize,
    /// Elements of a head (`head_dim`, by default `hidden_size / num_attention_heads`).
    pub head_dim: usize,
    /// Rows of the embedding (`vocab_size`).
    pub vocabulary: usize,
    /// Longest sequence, prompt and response together (`max_position_embeddings`).
    pub context: usize,
    /// Added to mean squares (`rms_norm_eps`).
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies (`rope_theta`).
    pub rope_theta: f64,
    /// Pairs of a head that turn by time, height and width (`mrope_section`, optional: Qwen2.5-VL, Dimple).
    pub mrope_section: Option<[u32; 3]>,
    /// The LM head is the embedding (`tie_word_embeddings`, by default false).
    pub tied: bool,
    /// Token of an undecoded position (`mask_token_id`, optional).
    pub mask_token: Option<u32>,
}

/// Head sizes the attention kernels come in.
const HEAD_DIMS: [usize; 3] = [64, 96, 128];
/// Widest row of the model kernels.
const MAX_WIDTH: usize = 32768;

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Read`], or as [`Config::from_json`].
    pub fn load(path: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Read { path: path.into(), reason: error.to_string() })?;
        Config::from_json(&text)
    }

    /// Parses and checks the text of `config.json`.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`] if it is not a JSON object, [`Error::Config`] with everything wrong in its fields.
    pub fn from_json(text: &str) -> Result<Config, Error> {
        let fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| Error::ConfigSyntax { reason: error.to_string() })?;
        let mut reader = Reader { fields: &fields, errors: Vec::new() };
        let config = reader.config();
        config.check(&mut reader);
        SpecErrors::check(reader.errors).map_err(Error::Config)?;
        Ok(config)
    }

    /// The text [`Config::from_json`] reads.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            // Through decimal, so that 1e-6 stays 1e-6 and not its nearest single.
            "rms_norm_eps": self.norm_epsilon.to_string().parse::<f64>().unwrap_or(f64::from(self.norm_epsilon)),
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
        });
        if let Some(mask) = self.mask_token {
            json["mask_token_id"] = mask.into();
        }
        if let Some(sections) = self.mrope_section {
            json["mrope_section"] = serde_json::json!(sections);
        }
        format!("{json:#}\n")
    }

    /// Query heads that share a key head.
    pub fn heads_per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements of a row of queries.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a row of keys, or of values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn check(&self, reader: &mut Reader<'_>) {
        for (field, width) in [("hidden_size", self.hidden), ("intermediate_size", self.intermediate)] {
            if width > MAX_WIDTH || !width.is_multiple_of(8) {
                reader.error(field, format!("{width}: must be a multiple of 8, at most {MAX_WIDTH}"));
            }
        }
        if self.kv_heads > 0 && !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("{} does not divide num_attention_heads = {}", self.kv_heads, self.heads);
            reader.error("num_key_value_heads", message);
        }
        if self.head_dim > 0 && !HEAD_DIMS.contains(&self.head_dim) {
            let message = format!("{} elements a head: the attention kernels have 64, 96 and 128", self.head_dim);
            reader.error("head_dim", message);
        }
        if !(self.norm_epsilon >= 0.0 && self.norm_epsilon.is_finite()) {
            reader.error("rms_norm_eps", format!("{}: must be a finite number, not negative", self.norm_epsilon));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            reader.error("rope_theta", format!("{}: must be a finite number, at least 1", self.rope_theta));
        }
        if let Some(sections) = self.mrope_section {
            let spec = RopeSpec {
                head_dim: self.head_dim as u32,
                dtype: MmaType::Bf16,
                bias: true,
                sections: Some(sections),
                arch: Arch::Sm80,
            };
            let found = spec.validate().err();
            for error in found.iter().flat_map(|errors| errors.iter()).filter(|error| error.field == "sections") {
                reader.error("mrope_section", error.message.to_string());
            }
        }
        if let Some(mask) = self.mask_token.filter(|mask| *mask as usize >= self.vocabulary) {
            reader.error("mask_token_id", format!("{mask} is not below vocab_size = {}", self.vocabulary));
        }
        for (field, allowed) in [("hidden_act", Value::from("silu")), ("use_sliding_window", false.into())] {
            if let Some(given) = reader.fields.get(field).filter(|given| **given != allowed) {
                reader.error(field, format!("{given} is not supported: must be {allowed} or absent"));
            }
        }
        if let Some(scaling) = reader.fields.get("rope_scaling").filter(|value| !value.is_null()) {
            reader.error("rope_scaling", format!("{scaling} is not supported: must be null or absent"));
        }
    }
}

/// Reads fields one by one and collects what is wrong; a wrong field reads as zero.
struct Reader<'a> {
    fields: &'a Map<String, Value>,
    errors: Vec<SpecError>,
}

impl Reader<'_> {
    fn config(&mut self) -> Config {
        let hidden = self.count("hidden_size");
        let heads = self.count("num_attention_heads");
        let head_dim = match self.fields.get("head_dim") {
            Some(Value::Null) | None if heads > 0 => {
                if !hidden.is_multiple_of(heads) {
                    let message = format!("{heads} does not divide hidden_size = {hidden}, and there is no head_dim");
                    self.error("num_attention_heads", message);
                }
                hidden / heads
            }
            Some(Value::Null) | None => 0,
            Some(_) => self.count("head_dim"),
        };
        Config {
            hidden,
            heads,
            head_dim,
            intermediate: self.count("intermediate_size"),
            layers: self.count("num_hidden_layers"),
            kv_heads: self.count("num_key_value_heads"),
            vocabulary: self.count("vocab_size"),
            context: self.count("max_position_embeddings"),
            norm_epsilon: self.number("rms_norm_eps") as f32,
            rope_theta: self.number("rope_theta"),
            mrope_section: self.sections("mrope_section"),
            tied: self.flag("tie_word_embeddings"),
            mask_token: self.token("mask_token_id"),
        }
    }

    fn error(&mut self, field: &'static str, message: String) {
        self.errors.push(SpecError::new(field, message));
    }

    fn required(&mut self, field: &'static str) -> Option<Value> {
        let value = self.fields.get(field).cloned();
        if value.is_none() {
            self.error(field, "is missing".into());
        }
        value
    }

    /// A positive integer that fits 32 bits, as everything the kernels count does.
    fn count(&mut self, field: &'static str) -> usize {
        let Some(value) = self.required(field) else { return 0 };
        match value.as_u64().and_then(|count| u32::try_from(count).ok()) {
            Some(count) if count > 0 => count as usize,
            _ => {
                self.error(field, format!("{value}: must be a positive 32-bit integer"));
                0
            }
        }
    }

    fn number(&mut self, field: &'static str) -> f64 {
        let Some(value) = self.required(field) else { return 1.0 };
        value.as_f64().unwrap_or_else(|| {
            self.error(field, format!("{value}: must be a number"));
            1.0
        })
    }

    fn flag(&mut self, field: &'static str) -> bool {
        match self.fields.get(field) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(value) => {
                let message = format!("{value}: must be true or false");
                self.error(field, message);
                false
            }
        }
    }

    fn sections(&mut self, field: &'static str) -> Option<[u32; 3]> {
        let value = self.fields.get(field).filter(|value| !value.is_null())?;
        let sections = serde_json::from_value(value.clone()).ok();
        if sections.is_none() {
            let message = format!("{value}: must be three numbers of pairs, or null");
            self.error(field, message);
        }
        sections
    }

    fn token(&mut self, field: &'static str) -> Option<u32> {
        let value = self.fields.get(field).filter(|value| !value.is_null())?;
        let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
        if token.is_none() {
            let message = format!("{value}: must be a token id or null");
            self.error(field, message);
        }
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Config {
        Config {
            hidden: 128,
            intermediate: 192,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            vocabulary: 80,
            context: 256,
            norm_epsilon: 1e-6,
            rope_theta: 1e4,
            mrope_section: Some([8, 8, 16]),
            tied: false,
            mask_token: Some(3),
        }
    }

    fn problems(edit: impl FnOnce(&mut Map<String, Value>)) -> Vec<(&'static str, String)> {
        let mut fields: Map<String, Value> = serde_json::from_str(&tiny().to_json()).unwrap();
        edit(&mut fields);
        match Config::from_json(&Value::Object(fields).to_string()) {
            Err(Error::Config(errors)) => errors.iter().map(|e| (e.field, e.message.to_string())).collect(),
            other => panic!("expected field errors, got {other:?}"),
        }
    }

    #[test]
    fn reads_what_it_writes() {
        assert_eq!(Config::from_json(&tiny().to_json()).unwrap(), tiny());
    }

    #[test]
    fn head_dim_defaults_to_an_even_share() {
        let text =
            tiny().to_json().replace("\"head_dim\": 64,", "").replace("\"hidden_size\": 128", "\"hidden_size\": 256");
        assert_eq!(Config::from_json(&text).unwrap().head_dim, 64);
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        let found = problems(|fields| {
            fields.remove("hidden_size");
            fields["num_key_value_heads"] = 3.into();
            fields["rope_theta"] = "big".into();
            fields["head_dim"] = 80.into();
            fields["mask_token_id"] = 80.into();
            fields.remove("mrope_section");
            fields["hidden_act"] = "gelu".into();
        });
        let fields: Vec<_> = found.iter().map(|(field, _)| *field).collect();
        assert_eq!(
            fields,
            ["hidden_size", "rope_theta", "num_key_value_heads", "head_dim", "mask_token_id", "hidden_act"]
        );
        assert_eq!(found[0].1, "is missing");
        assert!(found[2].1.contains("does not divide num_attention_heads = 4"), "{}", found[2].1);
    }

    #[test]
    fn impossible_values_name_their_field() {
        for (field, value) in [
            ("hidden_size", Value::from(12)),
            ("hidden_size", 0.into()),
            ("num_hidden_layers", (-1).into()),
            ("vocab_size", 2.5.into()),
            ("rms_norm_eps", (-1.0).into()),
            ("rope_theta", 0.5.into()),
            ("tie_word_embeddings", "yes".into()),
            ("mrope_section", serde_json::json!([8, 8, 8])),
            ("mrope_section", serde_json::json!([32])),
            ("rope_scaling", serde_json::json!({ "type": "yarn" })),
            ("use_sliding_window", true.into()),
        ] {
            let found = problems(|fields| {
                fields.insert(field.into(), value.clone());
            });
            assert!(found.iter().any(|(name, _)| *name == field), "{field} = {value}: {found:?}");
        }
    }

    #[test]
    fn broken_text_is_a_syntax_error() {
        for text in ["", "{", "[1]", "\"config\""] {
            assert!(matches!(Config::from_json(text), Err(Error::ConfigSyntax { .. })), "{text}");
        }
    }
}
