//! Branches, exits, barriers, fences, and warp-wide exchanges.

use super::memory::reduction;
use super::{Decoded, Decoder, Form, in_class};
use crate::op::{Barrier, BarrierKind, Boolean, Collective, Op, Shuffle, Slot, Vote};
use crate::parse::Operand;
use crate::types::Type;

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    let base = form.base;
    match base {
        "bra" => {
            form.take("uni");
            let [label] = form.operands(decoder)?;
            let Operand::Name(label) = label else { return decoder.fail("`bra` takes a label") };
            decoder.emit_branch(label)?;
        }
        "ret" | "exit" => {
            form.take("uni");
            form.operands::<0>(decoder)?;
            decoder.leaves();
            decoder.emit(Op::Exit)?;
        }
        "trap" => {
            form.operands::<0>(decoder)?;
            decoder.leaves();
            decoder.emit(Op::Trap)?;
        }
        "membar" | "fence" | "nanosleep" => fence(decoder, form)?,
        "griddepcontrol" => {
            let action = form.take_any(&["wait", "launch_dependents"]);
            form.operands::<0>(decoder)?;
            decoder.emit(match action {
                Some(0) => Op::LaunchWait,
                // Launches follow one another here.
                Some(_) => Op::Nothing,
                None => return decoder.fail("`griddepcontrol` is `.wait` or `.launch_dependents`"),
            })?;
        }
        "elect" => elect(decoder, form)?,
        "bar" if form.take("warp") => {
            form.take("sync");
            let [mask] = form.operands(decoder)?;
            let mask = decoder.source(mask, Type::B32)?;
            decoder.emit(Op::Collective { mask, collective: Box::new(Collective::Sync) })?;
        }
        "bar" | "barrier" => barrier(decoder, form)?,
        "activemask" => {
            form.take("b32");
            let [d] = form.operands(decoder)?;
            let d = decoder.target(d, Type::B32)?;
            decoder.emit(Op::ActiveMask { d })?;
        }
        "shfl" => shuffle(decoder, form)?,
        "vote" => vote(decoder, form)?,
        "match" => match_lanes(decoder, form)?,
        "redux" => reduce(decoder, form)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Accesses are executed in program order, so that most fences only have to be known.
fn fence<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    const KNOWN: [&str; 10] = ["gl", "cta", "cluster", "sys", "gpu", "sc", "acq_rel", "acquire", "release", "u32"];
    if form.take("mbarrier_init") {
        if !(form.take("release") & form.take("cluster")) {
            return decoder.fail("the fence is spelled `fence.mbarrier_init.release.cluster`");
        }
        form.operands::<0>(decoder)?;
        return decoder.emit(Op::MbarrierFence);
    }
    if form.take("proxy") {
        let asynchronous = form.take("async");
        let global = form.take("global");
        form.take_any(&["shared::cta", "shared::cluster"]);
        if !asynchronous {
            return decoder.fail("of the proxy fences only `fence.proxy.async` is supported");
        }
        form.operands::<0>(decoder)?;
        return decoder.emit(if global { Op::Nothing } else { Op::ProxyFence });
    }
    form.rest.retain(|part| !KNOWN.contains(part));
    form.done(decoder)?;
    decoder.emit(Op::Nothing)
}

fn barrier<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    // `bar` is `barrier.aligned`.
    let modern = form.base == "barrier";
    form.take("cta");
    let aligned = form.take("aligned") || !modern;
    let action = form.take_any(&["sync", "arrive", "red"]);
    let operation = form.take_any(&["and", "or", "popc"]);
    form.take_any(&["pred", "u32"]);
    form.done(decoder)?;
    let (kind, operands) = match (action, operation, form.operands) {
        (Some(0), None, operands) => (BarrierKind::Sync, operands),
        (Some(1), None, operands @ [_, _]) => (BarrierKind::Arrive, operands),
        (Some(2), Some(operation), [d, middle @ .., p]) => {
            let (source, negated) = decoder.signed_predicate(p)?;
            let kind = if operation == 2 {
                BarrierKind::Count { target: decoder.target(d, Type::U32)?, source, negated }
            } else {
                let op = if operation == 0 { Boolean::And } else { Boolean::Or };
                BarrierKind::Reduce { op, target: decoder.target(d, Type::Pred)?, source, negated }
            };
            (kind, middle)
        }
        _ => return decoder.fail("a barrier is `.sync id{, count}`, `.arrive id, count` or `.red.{and,or,popc}`"),
    };
    let (id, count) = match operands {
        [id] => (id, None),
        [id, count] => (id, Some(count)),
        _ => return decoder.fail("a barrier takes its number and an optional number of threads"),
    };
    let id = decoder.source(id, Type::U32)?;
    let count = count.map(|count| decoder.source(count, Type::U32)).transpose()?;
    decoder.emit(Op::Barrier(Box::new(Barrier { kind, id, count, aligned })))
}

fn emit<'t, 'e>(decoder: &mut Decoder<'t, 'e>, mask: Slot, collective: Collective) -> Decoded {
    decoder.emit(Op::Collective { mask, collective: Box::new(collective) })
}

fn shuffle<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let whole = form.take("sync") & form.take("b32");
    let mode = match form.take_any(&["up", "down", "bfly", "idx"]) {
        Some(at) if whole => [Shuffle::Up, Shuffle::Down, Shuffle::Butterfly, Shuffle::Index][at],
        _ => return decoder.fail("`shfl` is supported as .sync.{up,down,bfly,idx}.b32"),
    };
    let [d, a, lane, clamp, mask] = form.operands(decoder)?;
    let (d, valid) = match d {
        Operand::Pair(d, p) => (&**d, Some(&**p)),
        d => (d, None),
    };
    let ty = Type::B32;
    let (source, lane) = (decoder.source(a, ty)?, decoder.source(lane, ty)?);
    let (clamp, mask) = (decoder.source(clamp, ty)?, decoder.source(mask, ty)?);
    let target = decoder.target(d, ty)?;
    let valid = valid.map(|p| decoder.target_predicate(p)).transpose()?.flatten();
    emit(decoder, mask, Collective::Shuffle { mode, target, valid, source, lane, clamp })
}

fn elect<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    form.take("sync");
    let [d, mask] = form.operands(decoder)?;
    let Operand::Pair(lane, elected) = d else { return decoder.fail("`elect` takes a destination `lane|predicate`") };
    let mask = decoder.source(mask, Type::B32)?;
    let lane = if **lane == Operand::Name("_") { None } else { Some(decoder.target(lane, Type::B32)?) };
    let elected = decoder.target_predicate(elected)?;
    emit(decoder, mask, Collective::Elect { lane, elected })
}

fn vote<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let sync = form.take("sync");
    let mode = form.take_any(&["all", "any", "uni", "ballot"]);
    let ty = form.ty(decoder)?;
    let mode = match (mode, ty) {
        (Some(at @ 0..=2), Type::Pred) if sync => [Vote::All, Vote::Any, Vote::Uniform][at],
        (Some(3), Type::B32) if sync => Vote::Ballot,
        _ => return decoder.fail("`vote` is supported as .sync.{all,any,uni}.pred and .sync.ballot.b32"),
    };
    let [d, p, mask] = form.operands(decoder)?;
    let (source, negated) = decoder.signed_predicate(p)?;
    let mask = decoder.source(mask, Type::B32)?;
    let target = in_class(ty.class(), decoder.target(d, ty)?);
    emit(decoder, mask, Collective::Vote { mode, target, source, negated })
}

fn match_lanes<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let sync = form.take("sync");
    let all = form.take_any(&["any", "all"]);
    let ty = form.ty(decoder)?;
    let [d, a, mask] = form.operands(decoder)?;
    let source = super::integer::source_register(decoder, a, ty)?;
    let mask = decoder.source(mask, Type::B32)?;
    match (all, d) {
        (Some(0), d) if sync => {
            let target = decoder.target(d, Type::B32)?;
            emit(decoder, mask, Collective::MatchAny { target, source })
        }
        (Some(1), d) if sync => {
            let (d, p) = match d {
                Operand::Pair(d, p) => (&**d, Some(&**p)),
                d => (d, None),
            };
            let target = decoder.target(d, Type::B32)?;
            let all = p.map(|p| decoder.target_predicate(p)).transpose()?.flatten();
            emit(decoder, mask, Collective::MatchAll { target, all, source })
        }
        _ => decoder.fail("`match` is supported as .{any,all}.sync.{b32,b64}"),
    }
}

fn reduce<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    const NAMES: [&str; 6] = ["add", "min", "max", "and", "or", "xor"];
    let sync = form.take("sync");
    let name = form.take_any(&NAMES).map(|at| NAMES[at]);
    let ty = form.ty(decoder)?;
    let [d, a, mask] = form.operands(decoder)?;
    let Some(op) = name.and_then(|name| reduction(name, ty)).filter(|_| sync && ty.bytes() == 4 && !ty.is_float())
    else {
        return decoder.fail("`redux` is supported as .sync.{add,min,max,and,or,xor} on 32-bit integers");
    };
    let (source, mask) = (decoder.source(a, ty)?, decoder.source(mask, Type::B32)?);
    let target = decoder.target(d, ty)?;
    emit(decoder, mask, Collective::Reduce { op, target, source })
}
