use super::vocabulary::{self, BOS, EOS, MASK};
use super::*;

fn samples() -> impl Iterator<Item = Sample> {
    let forms = Kind::ALL.into_iter().flat_map(|kind| Form::ALL.map(|form| (kind, form)));
    forms.enumerate().map(|(i, (kind, form))| {
        Sample::new(HELD_OUT + i as u64, 300 + 100 * i, kind, form, i as f64 / 12.0).expect("a length of the task")
    })
}

#[test]
fn every_word_has_its_own_byte() {
    let words = vocabulary::words();
    assert!(words.len() <= vocabulary::SIZE, "{} words", words.len());
    for (id, word) in words.iter().enumerate() {
        assert_eq!(vocabulary::id(word), Some(id as u8), "'{word}' occurs twice");
    }
    assert_eq!(["<pad>", "<bos>", "<eos>", "<mask>", "<unk>"], words[..5]);
    let mut random = Random::new(1);
    assert!(Records::random(&mut random, 226, NAMES).tokens().iter().all(|&token| token != vocabulary::UNKNOWN));
}

#[test]
fn text_and_tokens_are_the_same_thing() {
    for sample in samples() {
        let answer = sample.answer;
        for tokens in [&sample.prompt[..], &sample.template, &answer] {
            assert_eq!(vocabulary::encode(&vocabulary::decode(tokens)).as_deref(), Ok(tokens));
        }
    }
    let unknown = vocabulary::encode("Ada Abbott lives in Atlantis.");
    assert_eq!(unknown, Err(Error::UnknownWord { word: "Atlantis".into() }));
}

#[test]
fn json_answers_are_json() {
    for sample in samples().filter(|sample| sample.question.form == Form::Json) {
        let text = vocabulary::decode_response(&sample.answer);
        let value: serde_json::Value = serde_json::from_str(&text).expect(&text);
        assert!(value.is_object());
    }
}

#[test]
fn answers_say_what_the_records_say() {
    let text = "Ada Abbott lives in Lima; Ada Abbott owns red kite; Ada Abbott follows Ben Boyd;
Ben Boyd lives in Oslo; Ben Boyd owns blue boat; Ben Boyd follows Cleo Cole;
Cleo Cole lives in Rome; Cleo Cole owns green lamp; Cleo Cole follows Dan Drake;
Dan Drake lives in Cairo; Dan Drake owns pink drum; Dan Drake follows Ada Abbott;
";
    let records = vocabulary::encode(text).expect("known words");
    assert_eq!(vocabulary::decode(&records), text);
    let cases = [
        ("where does Ben Boyd live? sentence:", "Ben Boyd lives in Oslo."),
        ("what does Cleo Cole own? json:", r#"{"name": "Cleo Cole", "owns": "green lamp"}"#),
        ("whom does Dan Drake follow? sentence:", "Dan Drake follows Ada Abbott."),
        (
            "please describe Ada Abbott fully. sentence:",
            "Ada Abbott lives in Lima; Ada Abbott owns red kite; Ada Abbott follows Ben Boyd.",
        ),
        (
            "leader of Cleo Cole owns? sentence:",
            "Cleo Cole follows Dan Drake; Dan Drake lives in Cairo; Dan Drake owns pink drum.",
        ),
        (
            "leader of Ada Abbott owns? json:",
            r#"{"name": "Ada Abbott", "follows": {"name": "Ben Boyd", "city": "Oslo", "owns": "blue boat"}}"#,
        ),
        (
            "chain from Ada Abbott three steps sentence:",
            "Ada Abbott follows Ben Boyd; Ben Boyd follows Cleo Cole; Cleo Cole follows Dan Drake; Dan Drake lives in Cairo.",
        ),
    ];
    for (question, answer) in cases {
        let question = vocabulary::encode(&format!("question: {question}")).expect("known words");
        let sample = Sample::from_tokens(&records, &question).expect("a question of the task");
        assert_eq!(vocabulary::decode_response(&sample.answer), answer);
        assert!(sample.is_correct(&sample.answer));
        let mut wrong = sample.answer;
        let city = wrong.iter().position(|&token| token == EOS).expect("an end") - 2;
        wrong[city] ^= 1;
        assert!(!sample.is_correct(&wrong));
        assert!(!sample.is_correct(&wrong[..4]));
    }
}

#[test]
fn a_seed_fixes_the_sample_and_the_length_is_used() {
    for length in [83, 256, 512, 1024, 2048, 4096] {
        let sample = |seed| Sample::new(seed, length, Kind::Chain, Form::Json, 0.55).expect("a length of the task");
        assert_eq!(sample(HELD_OUT), sample(HELD_OUT));
        assert_ne!(sample(HELD_OUT), sample(HELD_OUT + 1));
        let sample = sample(HELD_OUT);
        assert!(sample.prompt.len() <= length && sample.prompt.len() + RECORD_TOKENS > length);
        assert_eq!((sample.prompt[0], sample.depth_decile()), (BOS, 5));
        let (records, question) = sample.prompt.split_at(sample.prompt.len() - QUESTION_TOKENS);
        assert_eq!(Sample::from_tokens(records, question), Ok(sample));
    }
    for length in [0, 82, 4097] {
        let sample = Sample::new(0, length, Kind::City, Form::Json, 0.0);
        assert_eq!(sample, Err(Error::PromptLength { given: length }));
    }
}

#[test]
fn names_are_unique_and_following_is_one_cycle() {
    let records = Records::random(&mut Random::new(7), 226, NAMES);
    let mut person = &records.people[0];
    let mut seen = std::collections::HashSet::new();
    while seen.insert(person.name) {
        person = records.find(person.follows).expect("everybody follows somebody of the list");
    }
    assert_eq!((seen.len(), person.name), (226, records.people[0].name));
    let crowd = Records::random(&mut Random::new(7), 12, 4);
    let firsts: std::collections::HashSet<_> = crowd.people.iter().map(|person| person.name[0]).collect();
    assert!(crowd.people.len() == 12 && firsts.len() <= 4);
}

#[test]
fn a_template_masks_what_the_answer_must_find() {
    for sample in samples() {
        let masks = sample.template.iter().filter(|&&token| token == MASK).count();
        match sample.question.form {
            Form::Sentence => assert_eq!(masks, RESPONSE_TOKENS),
            Form::Json => assert!((3..=9).contains(&masks), "{masks}"),
        }
        for (&template, &answer) in sample.template.iter().zip(&sample.answer) {
            assert!(template == MASK || template == answer);
        }
    }
}

#[test]
fn every_value_counts_the_lookups_that_lead_to_it() {
    let lookups = |kind, form| {
        let records = Records::random(&mut Random::new(3), 5, NAMES);
        let question = Question { kind, form, name: records.people[0].name };
        let response = question.answer(&records).expect("everybody has a record");
        for (i, token) in question.structure().into_iter().enumerate() {
            assert_eq!(token == MASK, response.lookups[i].is_some());
            assert!(token == MASK || token == response.tokens[i]);
        }
        response.lookups.into_iter().flatten().collect::<Vec<_>>()
    };
    assert_eq!(lookups(Kind::Thing, Form::Sentence), [0, 0, 1, 1]);
    assert_eq!(lookups(Kind::Leader, Form::Sentence), [0, 0, 1, 1, 1, 1, 2, 1, 1, 2, 2]);
    assert_eq!(lookups(Kind::Leader, Form::Json), [0, 0, 1, 1, 2, 2, 2]);
    assert_eq!(lookups(Kind::Chain, Form::Json), [0, 0, 1, 1, 2, 2, 3, 3, 4]);
}

#[test]
fn bad_records_and_questions_are_named() {
    let tokens = |text| vocabulary::encode(text).expect("known words");
    let records = tokens("Ada Abbott lives in Lima; Ada Abbott owns red kite; Ada Abbott follows Ben Boyd;");
    let ask = |text| Sample::from_tokens(&records, &tokens(text)).expect_err("a bad question").to_string();
    assert!(ask("question: where does Ben Boyd live? json:").contains("no record of Ben Boyd"));
    assert!(ask("question: leader of Ada Abbott owns? json:").contains("no record of Ben Boyd"));
    assert!(ask("where does Ada Abbott live?").contains("is not a question"));
    let two_subjects = tokens("Ada Abbott lives in Lima; Ada Boyd owns red kite; Ada Abbott follows Ben Boyd;");
    for broken in [&records[1..], &two_subjects] {
        let broken = Sample::from_tokens(broken, &tokens("question: where does Ada Abbott live? json:"));
        assert!(matches!(broken, Err(Error::NotARecord { index: 0, .. })));
    }
}

#[test]
fn the_shipped_tokenizer_is_this_vocabulary() {
    let shipped: serde_json::Value =
        serde_json::from_str(include_str!("../../../models/records/tokenizer.json")).expect("JSON");
    assert_eq!(shipped, vocabulary::tokenizer_json(), "write it anew: cargo run --example corpus tokenizer");
}

#[test]
fn the_shipped_examples_are_held_out_samples() {
    for text in [
        include_str!("../../../models/records/examples/chain-4000.json"),
        include_str!("../../../models/records/examples/leader-2000.json"),
        include_str!("../../../models/records/examples/profile-4000.json"),
        include_str!("../../../models/records/examples/profile-600.json"),
    ] {
        let example: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let field = |name: &str| example[name].as_str().expect("a string");
        let tokens = |name| vocabulary::encode(field(name)).expect("known words");
        let sample = Sample::from_tokens(&tokens("prompt"), &tokens("question")).expect("a sample");
        assert_eq!(vocabulary::decode_response(&sample.answer), field("answer"));
    }
}
