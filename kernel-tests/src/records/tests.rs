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
    assert!(Records::random(&mut random, 340, NAMES).tokens().iter().all(|&token| token != vocabulary::UNKNOWN));
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
    let text = "Ada Abbott of Lima owns red kite and follows Ben Boyd;
        Ben Boyd of Oslo owns blue boat and follows Cleo Cole;
        Cleo Cole of Rome owns green lamp and follows Dan Drake;
        Dan Drake of Cairo owns pink drum and follows Ada Abbott;";
    let records = vocabulary::encode(text).expect("known words");
    let cases = [
        ("where does Ben Boyd live? sentence:", "Ben Boyd lives in Oslo."),
        ("what does Cleo Cole own? json:", r#"{"name": "Cleo Cole", "owns": "green lamp"}"#),
        ("whom does Dan Drake follow? sentence:", "Dan Drake follows Ada Abbott."),
        ("please describe Ada Abbott fully. sentence:", "Ada Abbott of Lima owns red kite and follows Ben Boyd."),
        (
            "leader of Ada Abbott owns? json:",
            r#"{"name": "Ada Abbott", "follows": "Ben Boyd", "city": "Oslo", "owns": "blue boat"}"#,
        ),
        (
            "chain from Ada Abbott three steps sentence:",
            "Ada Abbott follows Ben Boyd who follows Cleo Cole who follows Dan Drake of Cairo.",
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
    for length in [64, 256, 512, 1024, 2048, 4096] {
        let sample = |seed| Sample::new(seed, length, Kind::Chain, Form::Json, 0.55).expect("a length of the task");
        assert_eq!(sample(HELD_OUT), sample(HELD_OUT));
        assert_ne!(sample(HELD_OUT), sample(HELD_OUT + 1));
        let sample = sample(HELD_OUT);
        assert!(sample.prompt.len() <= length && sample.prompt.len() + RECORD_TOKENS > length);
        assert_eq!((sample.prompt[0], sample.depth_decile()), (BOS, 5));
        let (records, question) = sample.prompt.split_at(sample.prompt.len() - QUESTION_TOKENS);
        assert_eq!(Sample::from_tokens(records, question), Ok(sample));
    }
    for length in [0, 58, 4097] {
        let sample = Sample::new(0, length, Kind::City, Form::Json, 0.0);
        assert_eq!(sample, Err(Error::PromptLength { given: length }));
    }
}

#[test]
fn names_are_unique_and_following_is_one_cycle() {
    let records = Records::random(&mut Random::new(7), 340, NAMES);
    let mut person = &records.people[0];
    let mut seen = std::collections::HashSet::new();
    while seen.insert(person.name) {
        person = records.find(person.follows).expect("everybody follows somebody of the list");
    }
    assert_eq!((seen.len(), person.name), (340, records.people[0].name));
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
fn bad_records_and_questions_are_named() {
    let tokens = |text| vocabulary::encode(text).expect("known words");
    let records = tokens("Ada Abbott of Lima owns red kite and follows Ben Boyd;");
    let ask = |text| Sample::from_tokens(&records, &tokens(text)).expect_err("a bad question").to_string();
    assert!(ask("question: where does Ben Boyd live? json:").contains("no record of Ben Boyd"));
    assert!(ask("question: leader of Ada Abbott owns? json:").contains("no record of Ben Boyd"));
    assert!(ask("where does Ada Abbott live?").contains("is not a question"));
    let broken = Sample::from_tokens(&records[1..], &tokens("question: where does Ada Abbott live? json:"));
    assert!(matches!(broken, Err(Error::NotARecord { index: 0, .. })));
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
