"""Trains the small model of the records task: first autoregressively, then by masked diffusion.

The task itself (lists, questions, answers, vocabulary) is defined in Rust, `kernel-tests/src/records/`; this script
only reads the stream of its `corpus` example. See README.md beside it for the command.

What makes the lookup learnable in minutes:

* Many questions share one list. Every (question, response) pair attends to the list and to itself only, at the
  positions right behind the list, exactly as at inference. One question a list is far too thin a supervision.
* Most lists are crowds of few names, so that half a name never finds a record.
* Lists start short and grow as the model masters them; short ones stay in the mixture, or they are forgotten.
* The heads of the first layer start as heads that look one, two, three and four tokens back.
* What no single lookup can find from what is shown weighs little: it is noise to whoever learns to look up.
"""

import argparse
import json
import math
import pathlib
import queue
import subprocess
import threading
import time

START = time.time()  # before torch: loading it takes a while, and counts

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

RECORD, QUESTION, RESPONSE = 18, 10, 32  # tokens
PAIR = QUESTION + RESPONSE
FRAME_PAIR = QUESTION + 2 * RESPONSE + 3  # bytes a pair takes in the stream
PAD, BOS, EOS, MASK, VOCABULARY = 0, 1, 2, 3, 256
KINDS = ["city", "thing", "follows", "profile", "leader", "chain"]
LOOKUPS = 4  # the kinds before this one are answered by one lookup
MAX_PROMPT = 4096
HELD_OUT = 1 << 63  # seeds from here on never occur in training
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # of activations; a CPU is slow in bf16


class Batch:
    """`lists` lists of `records` records with `questions` pairs each, cut out of the stream's frames."""

    def __init__(self, frames, records):
        frames = frames.to(DEVICE).long()
        prefix = 1 + RECORD * records
        self.prefix = frames[:, :prefix]
        pairs = frames[:, prefix:].unflatten(1, (-1, FRAME_PAIR))
        self.question, self.answer, self.lookups, labels = pairs.split([QUESTION, RESPONSE, RESPONSE, 3], dim=2)
        self.value = self.lookups > 0
        self.kind, self.form, self.decile = labels.unbind(2)


class Corpus:
    """The generator process."""

    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def frames(self, seed, lists, records, questions, names=64, kinds="111223"):
        self.process.stdin.write(f"{seed} {lists} {records} {questions} {names} {kinds}\n".encode())
        self.process.stdin.flush()
        size = 1 + RECORD * records + questions * FRAME_PAIR
        data = bytearray(self.process.stdout.read(lists * size))
        frames = torch.frombuffer(data, dtype=torch.uint8).view(lists, size)
        return frames.pin_memory() if DEVICE == "cuda" else frames


class Block(nn.Module):
    """One layer of the Qwen2 layout; `save` names its parts as Hugging Face does."""

    def __init__(self, width, heads, kv_heads, mlp):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * 64)
        self.output = nn.Linear(heads * 64, width, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(self, x, cos, sin, prefix, mask):
        qkv = self.qkv(norm(x, self.attention_norm)).unflatten(2, (-1, 64)).transpose(1, 2)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(qk, cos, sin).split([self.heads, self.kv_heads], dim=1)
        repeat = self.heads // self.kv_heads
        k, v = [x.unsqueeze(2).expand(-1, -1, repeat, -1, -1).flatten(1, 2) for x in (k, v)]
        before = F.scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)
        pairs = F.scaled_dot_product_attention(q[:, :, prefix:], k, v, attn_mask=mask)
        x = x + self.output(torch.cat([before, pairs], dim=2).transpose(1, 2).flatten(2))
        return x + self.down(swiglu(self.gate_up(norm(x, self.mlp_norm))))


def norm(x, weight):
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), 1e-6)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class Model(nn.Module):
    def __init__(self, layers, width, heads, kv_heads, mlp, theta, look_back):
        super().__init__()
        self.config = dict(layers=layers, width=width, heads=heads, kv_heads=kv_heads, mlp=mlp, theta=theta)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, mlp) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.3)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() == 2 and "embedding" not in name:
                residual = math.sqrt(2 * layers) if "output" in name or "down" in name else 1
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 / residual)
        if look_back:
            self.look_back(heads, kv_heads, look_back)

    @torch.no_grad()
    def look_back(self, heads, kv_heads, strength):
        """Query and key biases of the first layer with which head h looks h + 1 tokens back, whatever the tokens are:
        the rotations of the four fastest frequencies are in phase at that distance only."""
        first, slots = self.blocks[0].qkv, heads + kv_heads
        first.weight[: 64 * slots] *= 0.25
        bias = first.bias[: 64 * slots].view(slots, 2, 32)
        turn = self.config["theta"] ** -(torch.arange(4) / 32)
        for head in range(heads):
            back = turn * (head + 1)
            bias[head, 0, :4], bias[head, 1, :4] = strength * back.cos(), -strength * back.sin()
        bias[heads:, 0, :4] = strength

    def forward(self, prefix, pairs, causal):
        """Logits `[lists, questions, 32, vocabulary]` for the positions of the responses.

        `prefix` `[lists, tokens]` is causal. `pairs` `[lists, questions, 42]`: question rows are causal, response rows
        too if `causal`, else they see their whole pair. Right shift: row i - 1 predicts position i.
        """
        lists, questions, _ = pairs.shape
        length, rows = prefix.shape[1], questions * PAIR
        device = prefix.device
        place = torch.arange(rows, device=device)
        position = torch.cat([torch.arange(length, device=device), length + place % PAIR])
        frequency = self.config["theta"] ** -(torch.arange(0, 64, 2, device=device) / 64)
        angle = position[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        # The storage behind the mask is padded: the kernels want aligned rows.
        mask = torch.zeros(rows, (length + rows + 15) // 16 * 16, dtype=DTYPE, device=device)[:, : length + rows]
        row, column = place[:, None], place[None, :]
        see = (row % PAIR >= column % PAIR) if causal else (row % PAIR >= column % PAIR) | (row % PAIR >= QUESTION)
        mask[:, length:].masked_fill_(~(see & (row // PAIR == column // PAIR)), -math.inf)
        # As a product with one-hot rows: so few words, and its gradient needs neither sort nor atomics.
        tokens = torch.cat([prefix, pairs.flatten(1)], dim=1)
        x = (tokens[:, :, None] == torch.arange(VOCABULARY, device=device)).to(DTYPE) @ self.embedding.weight.to(DTYPE)
        for block in self.blocks:
            x = block(x, cos, sin, length, mask)
        x = x[:, length:].unflatten(1, (questions, PAIR))[:, :, QUESTION - 1 : -1]
        return self.head(norm(x, self.norm)).float()


def corrupt(batch, share):
    """What the diffusion stage masks.

    In `share` of the responses everything that decoding starts without: all of a sentence, the values of JSON. In the
    others what confident decoding has not filled in yet: mostly all values behind a cut, the beginning of a chain being
    known; else a random subset, of the values or of all tokens."""
    shape, device = batch.answer.shape, batch.answer.device
    draw = lambda *size: torch.rand(size, device=device)
    style, cut, rate = draw(*shape[:2], 1), draw(*shape[:2], 1), 0.02 + 0.98 * draw(*shape[:2], 1)
    value, every = batch.value, torch.ones_like(batch.value)
    length = (batch.answer == EOS).int().argmax(dim=2, keepdim=True)
    behind = torch.arange(RESPONSE, device=device) >= length * cut
    all_or_values = torch.where(draw(*shape[:2], 1) < 0.5, every, value)
    later = torch.where(style < share + 0.6 * (1 - share), behind & value, (draw(*shape) < rate) & all_or_values)
    return torch.where(style < share, every & (value | (batch.form == 0)[:, :, None]), later)


def in_reach(batch, masked):
    """Where at most one lookup is missing, given the names that are not masked."""
    shown = batch.value & ~masked
    reach = torch.ones_like(batch.kind)  # the question's name is always there; `lookups` counts from 1
    for names in (2, 3, 4):
        reach = torch.maximum(reach, names * (shown & (batch.lookups == names)).any(dim=2))
    return batch.lookups <= reach[:, :, None] + 1


@torch.no_grad()
def decode(model, batch, threshold=0.95):
    """Confident decoding: each pass keeps what is surer than `threshold`, or else the surest position."""
    sentence = (batch.form == 0)[:, :, None]
    response = torch.where(sentence | batch.value, MASK, batch.answer)
    passes = torch.zeros_like(batch.kind)
    while (masked := response == MASK).any():
        with torch.autocast(DEVICE, DTYPE, enabled=DEVICE == "cuda"):
            logits = model(batch.prefix, torch.cat([batch.question, response], dim=2), causal=False)
        logits[..., MASK] = -math.inf
        sure, token = logits.softmax(dim=-1).max(dim=-1)
        sure = sure.masked_fill(~masked, -1)
        surest = F.one_hot(sure.argmax(dim=2), RESPONSE).bool()
        response = torch.where(masked & ((sure >= threshold) | surest), token, response)
        passes += masked.any(dim=2)
    answer_length = (batch.answer == EOS).int().argmax(dim=2, keepdim=True) + 1
    behind = torch.arange(RESPONSE, device=response.device) >= answer_length
    return ((response == batch.answer) | behind).all(dim=2), passes


def evaluate(model, corpus, lengths, questions_each, seed):
    """Held-out questions at each prompt length: right answers by kind, form and depth, and forward passes."""
    table = {}
    for length in lengths:
        records = (length - 1 - QUESTION) // RECORD
        total, parts = max(1, questions_each // 16), []
        lists = min(total, max(1, 60_000 // length))
        for first in range(0, total, lists):
            batch = Batch(corpus.frames(HELD_OUT + seed + first, lists, records, 16), records)
            parts.append([batch.kind, batch.form, batch.decile, *decode(model, batch)])
        kind, form, decile, right, passes = [torch.cat(part).flatten().cpu() for part in zip(*parts)]
        percent = lambda rows: round(100 * right[rows].float().mean().item(), 2) if rows.any() else None
        every = torch.ones_like(right)
        table[length] = {
            "questions": len(right),
            "right": percent(every),
            "depth": [percent(decile == tenth) for tenth in range(10)],
            "kind": {
                name: {
                    "sentence": percent((kind == i) & (form == 0)),
                    "json": percent((kind == i) & (form == 1)),
                    "passes": round(passes[kind == i].float().mean().item(), 2),
                }
                for i, name in enumerate(KINDS)
            },
            "passes": round(passes.float().mean().item(), 2),
        }
    return table


def show(table):
    for length, row in table.items():
        depth = " ".join("  -  " if d is None else f"{d:5.1f}" for d in row["depth"])
        print(f"{length:5} tokens  {row['right']:6.2f} % of {row['questions']}  by depth {depth}  {row['passes']} passes")
        kinds = row["kind"].items()
        print("             " + "  ".join(f"{k} {v['sentence']}/{v['json']} ({v['passes']})" for k, v in kinds), flush=True)


def save(model, folder):
    """`model.safetensors` in bf16 and `config.json`, named as Hugging Face's Qwen2 is."""
    c = model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm}
    tensors["lm_head.weight"] = model.head.weight
    for i, block in enumerate(model.blocks):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = block.attention_norm
        tensors[at + "post_attention_layernorm.weight"] = block.mlp_norm
        sizes = [64 * c["heads"], 64 * c["kv_heads"], 64 * c["kv_heads"]]
        for name, weight, bias in zip("qkv", block.qkv.weight.split(sizes), block.qkv.bias.split(sizes)):
            tensors[at + f"self_attn.{name}_proj.weight"] = weight
            tensors[at + f"self_attn.{name}_proj.bias"] = bias
        tensors[at + "self_attn.o_proj.weight"] = block.output.weight
        tensors[at + "mlp.gate_proj.weight"], tensors[at + "mlp.up_proj.weight"] = block.gate_up.weight.chunk(2)
        tensors[at + "mlp.down_proj.weight"] = block.down.weight
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", torch_dtype="bfloat16", hidden_act="silu",
        vocab_size=VOCABULARY, hidden_size=c["width"], intermediate_size=c["mlp"], num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"], num_key_value_heads=c["kv_heads"], head_dim=64, rms_norm_eps=1e-6,
        rope_theta=c["theta"], max_position_embeddings=MAX_PROMPT + RESPONSE, tie_word_embeddings=False,
        attention_dropout=0.0, use_sliding_window=False, initializer_range=0.02,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, mask_token_id=MASK,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(model, folder):
    """Reads the saved file back: what is evaluated is what is shipped."""
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        model.embedding.weight.copy_(tensors["model.embed_tokens.weight"])
        model.norm.copy_(tensors["model.norm.weight"])
        model.head.weight.copy_(tensors["lm_head.weight"])
        for i, block in enumerate(model.blocks):
            part = lambda name: tensors[f"model.layers.{i}.{name}"]
            block.attention_norm.copy_(part("input_layernorm.weight"))
            block.mlp_norm.copy_(part("post_attention_layernorm.weight"))
            for kind, target in [("weight", block.qkv.weight), ("bias", block.qkv.bias)]:
                target.copy_(torch.cat([part(f"self_attn.{name}_proj.{kind}") for name in "qkv"]))
            block.output.weight.copy_(part("self_attn.o_proj.weight"))
            block.gate_up.weight.copy_(torch.cat([part("mlp.gate_proj.weight"), part("mlp.up_proj.weight")]))
            block.down.weight.copy_(part("mlp.down_proj.weight"))


class Curriculum:
    """How many records the next list has, from how few names, and which questions are asked.

    The number of records is a rung of a ladder; the longest rung in use rises while lookups in it succeed, and with the
    clock from `--patience` on, to reach the end at `--full`. Most lists are crowds of few names: otherwise the model keys
    its lookups on the first name alone, which is nearly always enough in a short list, and stays there.
    """

    LADDER = [4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 38, 48, 60, 76, 96, 120, 150, 188, 226]

    def __init__(self, options):
        self.random = torch.Generator().manual_seed(options.seed)
        self.top, self.done, self.options = self.LADDER.index(options.records), 0.0, options

    @property
    def longest(self):
        return self.LADDER[self.top]

    def draw(self):
        near, uniform, crowd, density = torch.rand(4, generator=self.random).tolist()
        growing = self.done < self.options.full
        lowest = max(0, self.top - 2) if growing and near < 0.5 else min(3, self.top)
        records = self.LADDER[lowest + int(uniform * (self.top + 1 - lowest))]
        fewest = math.ceil((records * (1.3 + 1.7 * density)) ** 0.5)
        names = min(64, fewest) if crowd < self.options.crowds else 64
        questions = self.options.questions * (2 if records >= 60 else 1)
        return records, names, questions, self.options.first_kinds if self.longest < 8 else self.options.kinds

    def autoregressive(self):
        return self.longest < 30 and self.done < self.options.autoregressive

    def report(self, accuracy, done):
        self.done = done
        last, patience, full = len(self.LADDER) - 1, self.options.patience, self.options.full
        due = last * min(1.0, (done - patience) / (full - patience))
        if self.top < last and (accuracy > 0.95 or due > self.top):
            self.top += 1


class Trainer:
    """One step of training, and on a GPU a CUDA graph of it for each shape: launched one by one, the small kernels
    would keep the device waiting."""

    def __init__(self, model, options):
        self.model, self.graphs, self.seen = model, {}, {}
        self.capture = DEVICE == "cuda" and not options.eager
        self.rate = torch.zeros((), device=DEVICE)
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
        groups = [dict(params=matrices, weight_decay=0.05), dict(params=others, weight_decay=0.0)]
        on_device = DEVICE == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.95), fused=on_device, capturable=on_device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.first_pass, self.beyond, self.blind = options.first_pass, options.beyond, options.blind
        self.loss = torch.zeros((), device=DEVICE)
        # Right and asked values that one lookup finds, of the kinds that need no more and of the others.
        self.hits = torch.zeros(4, device=DEVICE)

    def compute(self, frames, records, causal):
        batch = Batch(frames, records)
        masked = corrupt(batch, self.first_pass)
        if causal:  # mostly with everything before shown; the rest learns to take the name from the question
            masked = masked & (torch.rand(batch.kind.shape, device=DEVICE) < self.blind)[:, :, None]
        near, found = in_reach(batch, masked), batch.lookups > 1
        # The many positions without a value are easy and must not drown the lookups.
        weight = near * (0.3 + 0.7 * found) + ~near * self.beyond
        if not causal:
            weight = weight * masked
        shown = batch.answer.masked_fill(masked, MASK)
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, DTYPE, enabled=DEVICE == "cuda", cache_enabled=False):
            logits = self.model(batch.prefix, torch.cat([batch.question, shown], dim=2), causal)
        loss = F.cross_entropy(logits.flatten(0, 2), batch.answer.flatten(), reduction="none")
        loss = (loss * weight.flatten()).sum() / weight.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.loss += loss
            counted = ~masked.any(dim=2, keepdim=True) if causal else masked
            asked = counted & near & found
            right = asked & (logits.argmax(dim=-1) == batch.answer)
            lookups = (batch.kind < LOOKUPS)[:, :, None]
            self.hits += torch.stack([(x & y).sum() for y in (lookups, ~lookups) for x in (right, asked)])

    def step(self, frames, records, causal):
        key = (*frames.shape, causal)
        self.seen[key] = self.seen.get(key, 0) + 1
        if not self.capture or self.seen[key] <= 2:  # the first ones warm up whatever is built lazily
            self.compute(frames, records, causal)
            return
        if key not in self.graphs:
            static, graph = frames.to(DEVICE), torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            pool = next(iter(self.graphs.values()))[1].pool() if self.graphs else None
            try:
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self.compute(static, records, causal)
            except RuntimeError as error:
                print(f"no graph for {key}, launching one by one from here: {error}", flush=True)
                self.capture = False
                return self.compute(frames, records, causal)
            self.graphs[key] = static, graph
        static, graph = self.graphs[key]
        static.copy_(frames, non_blocking=True)
        graph.replay()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="the built `corpus` example of kernel-tests")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=9, help="wall clock for everything, the evaluation included")
    parser.add_argument("--steps", type=int, default=10**9, help="training ends here, or when the time is over")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--hold", type=float, default=0.4, help="share of the time before the linear decay")
    parser.add_argument("--tokens", type=int, default=40_000, help="tokens of one step")
    parser.add_argument("--questions", type=int, default=16, help="questions of a list; twice that in long ones")
    parser.add_argument("--crowds", type=float, default=0.7, help="share of lists with few names")
    parser.add_argument("--first-kinds", default="111300", help="shares of the kinds of question at first")
    parser.add_argument("--kinds", default="111223", help="the shares once lists have 8 records")
    parser.add_argument("--autoregressive", type=float, default=0.25, help="latest end of it, a share of the time")
    parser.add_argument("--patience", type=float, default=0.3, help="share of the time after which lists grow anyway")
    parser.add_argument("--full", type=float, default=0.45, help="share of the time at which they are the longest")
    parser.add_argument("--blind", type=float, default=0.25, help="share of responses masked while autoregressive")
    parser.add_argument("--first-pass", type=float, default=0.5, help="share of responses with all masked")
    parser.add_argument("--beyond", type=float, default=0.1, help="weight of what is more than one lookup away")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--mlp", type=int, default=448)
    parser.add_argument("--theta", type=float, default=100_000.0)
    parser.add_argument("--look-back", type=float, default=6.0, help="strength of the first layer's biases; 0: none")
    parser.add_argument("--resume", type=pathlib.Path, help="go on from this model, by diffusion")
    parser.add_argument("--records", type=int, default=4, help="records of the first lists, a rung of the ladder")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--evaluate", type=int, default=4096, help="held-out questions at each length")
    options = parser.parse_args()

    start, evaluation = START, 25.0
    budget = options.minutes * 60 - evaluation
    torch.manual_seed(options.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each shape
    shape = options.layers, options.width, options.heads, options.kv_heads, options.mlp
    model = Model(*shape, options.theta, options.look_back).to(DEVICE)
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {DEVICE}; {vars(options)}", flush=True)
    if options.resume:
        load(model, options.resume)
    trainer, curriculum = Trainer(model, options), Curriculum(options)
    corpus, judge, ready = Corpus(options.corpus), Corpus(options.corpus), queue.Queue(maxsize=6)

    def feed():
        seed = options.seed << 40
        while True:
            records, names, questions, kinds = curriculum.draw()
            lists = max(1, options.tokens // (1 + RECORD * records + PAIR * questions))
            ready.put((corpus.frames(seed, lists, records, questions, names, kinds), records))
            seed += lists

    threading.Thread(target=feed, daemon=True).start()
    if DEVICE == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # graphs must not be captured from the default one
    log, done, step, saved = [], 0.0, 0, time.time()
    counts = torch.zeros(4, device=DEVICE)
    while done < 1:
        done = max(step / options.steps, (time.time() - start) / budget)
        causal = not options.resume and curriculum.autoregressive()
        rate = options.rate * min(1, (step + 1) / 100) * min(1.0, max(0.0, 1 - done) / (1 - options.hold))
        trainer.rate.fill_(rate)
        frames, records = ready.get()
        trainer.step(frames, records, causal)
        if records >= 0.6 * curriculum.longest:
            counts += trainer.hits
        trainer.hits.zero_()
        step += 1
        if step % 25 == 0:
            lookup, chained = (counts[0::2] / counts[1::2].clamp(min=1)).tolist()
            counts.zero_()
            curriculum.report(lookup, done)
            if step % 100 == 0:
                entry = dict(
                    step=step, seconds=round(time.time() - start, 1), stage="autoregressive" if causal else "diffusion",
                    loss=round(trainer.loss.item() / 100, 4), longest=curriculum.longest, rate=round(rate, 6),
                    lookup=round(lookup, 4), chained=round(chained, 4),
                )  # fmt: skip
                log.append(entry)
                print(*[f"{key} {value}" for key, value in entry.items()], flush=True)
                trainer.loss.zero_()
        if time.time() - saved > 60:
            save(model, options.out)
            if not causal:
                longest = 1 + RECORD * curriculum.longest + QUESTION
                show(evaluate(model, judge, sorted({256, longest}), 512, seed=1 << 40))
            saved = time.time()

    save(model, options.out)
    load(model, options.out)
    train_seconds = round(time.time() - start, 1)
    print(f"trained for {step} steps in {train_seconds} s; held-out questions on the saved file:", flush=True)
    table = evaluate(model, judge, (256, 512, 1024, 2048, 3072, 4096), options.evaluate, seed=0)
    show(table)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    figures = dict(
        options={name: value for name, value in vars(options).items() if name not in ("corpus", "out", "resume")},
        device=device, torch=torch.__version__, seconds=train_seconds, steps=step, held_out=table, log=log,
    )  # fmt: skip
    (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
