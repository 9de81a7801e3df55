"""The PyTorch side of `peers.py`, in an environment that has PyTorch and NumPy: answers one JSON line with another.

Written as one writes these things in PyTorch: vectors lie in an int8 table; SimTier is a product and `scatter_add_`, or
one comparison per tier; DIN joins [target, behavior, difference, product], or, as `factorised`, splits its first layer
as ours does. Embeddings are sparse, with SparseAdam, which touches the rows of a batch alone, as ours.
"""

import json
import pathlib
import sys
import time
import typing

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CONSTANTS = "constants.json"  # in the folder of the arrays


class Constants(typing.NamedTuple):
    """What both sides hold to: `peers.py` sends it, since nothing may be typed twice."""

    num_tiers: int  # of SimTier
    num_selected: int  # behaviors that MAKE attends to
    knowledge_scale: float  # of what MAKE has learned, beside what is learned of ids
    candidates: int  # of a request
    learning_rate: float
    embedding_learning_rate: float
    epsilon: float  # Adam's
    threads: int


def similarity(target, target_scales, behaviors, behaviors_scales):
    """int8 [B, D] and [B or 1, L, D] with scales -> float32 [B, L]."""
    if behaviors.shape[0] == 1:
        dots = target.float() @ behaviors[0].float().T
    else:
        dots = torch.bmm(behaviors.float(), target.float()[:, :, None])[:, :, 0]
    return dots * target_scales[:, None] * behaviors_scales


def by_scatter(cosine, mask, num_tiers):
    """Counts per tier, float32 [B, N]: each behavior is added to its tier."""
    tier = torch.floor((cosine.clamp(-1, 1) + 1) * (num_tiers / 2)).clamp(max=num_tiers - 1).long()
    counts = torch.zeros(cosine.shape[0], num_tiers, device=cosine.device)
    return counts.scatter_add_(1, tier, mask.float().expand_as(cosine))


def by_comparison(cosine, mask, num_tiers):
    """The same by a comparison with every tier, [B, L, N], as the authors' later code does."""
    tier = torch.floor((cosine.clamp(-1, 1) + 1) * (num_tiers / 2)).clamp(max=num_tiers - 1).long()
    return ((tier[:, :, None] == torch.arange(num_tiers)) & mask[:, :, None]).float().sum(1)


def prelu(x, alpha):
    return torch.where(x > 0, x, x * alpha)


class Attention(nn.Module):
    """DIN's activation unit with one hidden layer, softmax over the behaviors."""

    def __init__(self, weights, name, factorised):
        super().__init__()
        self.factorised = factorised
        for part in ("kernel", "bias", "alpha", "out", "out_bias"):
            setattr(self, part, nn.Parameter(weights[f"{name}_{part}"].clone()))

    def forward(self, target, behaviors, mask):
        query = target[:, None]
        if self.factorised:
            of_target, of_behavior, of_difference, of_product = self.kernel.chunk(4)
            hidden = query @ (of_target + of_difference) + behaviors @ (of_behavior - of_difference)
            hidden = hidden + (query * behaviors) @ of_product + self.bias
        else:
            rows = torch.broadcast_shapes(query.shape, behaviors.shape)
            query, keys = query.expand(rows), behaviors.expand(rows)
            hidden = torch.cat([query, keys, query - keys, query * keys], -1) @ self.kernel + self.bias
        scores = (prelu(hidden, self.alpha) @ self.out + self.out_bias)[..., 0].masked_fill(~mask, -1e30)
        weights = torch.softmax(scores, -1)
        if behaviors.shape[0] == 1:
            return weights @ behaviors[0]
        return torch.bmm(weights[:, None], behaviors)[:, 0]


class Head(nn.Module):
    """Hidden layers with PReLU, and the logit."""

    def __init__(self, weights, name, num_layers):
        super().__init__()
        self.kernels, self.biases, self.alphas = (
            nn.ParameterList(nn.Parameter(weights[f"{name}_{part}_{i}"].clone()) for i in range(count))
            for part, count in (("kernel", num_layers + 1), ("bias", num_layers + 1), ("alpha", num_layers))
        )

    def hidden(self, x):
        found = []
        for kernel, bias, alpha in zip(self.kernels, self.biases, self.alphas):
            x = prelu(x @ kernel + bias, alpha)
            found.append(x)
        return found

    def forward(self, x):
        return (self.hidden(x)[-1] @ self.kernels[-1] + self.biases[-1])[:, 0]


class ClickModel(nn.Module):
    """DIN over embeddings; with vectors, a head that sees SimTier and a frozen MAKE as well, and one that does not."""

    def __init__(self, weights, constants, has_vectors, factorised=False):
        super().__init__()
        self.constants = constants
        self.attention = Attention(weights, "attention", factorised)
        self.head = Head(weights, "head", 2)
        if has_vectors:
            self.id_head = Head(weights, "id_head", 2)
            self.make_attention = Attention(weights, "make_attention", factorised)
            self.make = Head(weights, "make", 3)
            for parameter in (*self.make_attention.parameters(), *self.make.parameters()):
                parameter.requires_grad_(False)

    def joined(self, user, target, behaviors, mask):
        """What is made of embeddings: user [B or 1, E], target [B, E], behaviors [B or 1, L, E], float32 [B, F]."""
        length = mask.float().sum(1, keepdim=True)
        average = (behaviors * mask.float()[..., None]).sum(1) / length.clamp(min=1)
        interest = self.attention(target, behaviors, mask)
        parts = [user, average, torch.log1p(length), target, interest, interest * target, average * target]
        return torch.cat([part.expand(target.shape[0], -1) for part in parts], -1)

    def knowledge(self, table, scales, target_slots, slots, mask):
        """What is made of vectors: log1p of tiers over all behaviors, and MAKE over the most similar."""
        target, target_scales = table[target_slots], scales[target_slots]
        has_vector = (slots != 0) & mask
        cosine = similarity(target, target_scales, table[slots], scales[slots])
        tiers = torch.log1p(by_scatter(cosine, has_vector, self.constants.num_tiers))
        best = cosine.masked_fill(~has_vector, -2.0).topk(self.constants.num_selected, sorted=False).indices
        selected = slots.expand_as(cosine).gather(1, best)
        width = table.shape[1] ** 0.5
        own = target.float() * target_scales[:, None] * width
        others = table[selected].float() * scales[selected][..., None] * width
        pooled = self.make_attention(own, others, has_vector.expand_as(cosine).gather(1, best))
        v_make = torch.cat([pooled, own, pooled * own / width], -1)
        exists = (target_slots != 0).float()[:, None]
        missing = torch.log1p((mask & (slots == 0)).float().sum(1, keepdim=True)).expand(len(target), -1)
        learned = torch.cat([v_make, *self.make.hidden(v_make)], -1) * exists * self.constants.knowledge_scale
        return [missing, exists, tiers * exists, learned]

    def forward(self, user, target, behaviors, mask, vectors=None):
        joined = self.joined(user, target, behaviors, mask)
        if vectors is None:
            return self.head(joined), None
        seen = torch.cat([joined.detach(), *self.knowledge(*vectors, mask)], -1)
        return self.head(seen), self.id_head(joined)


def losses(model, inputs, label):
    """The losses that ours sums: of rows whose target has a vector, and of ids alone, of all rows."""
    logit, id_logit = model(*inputs)
    if id_logit is None:
        return functional.binary_cross_entropy_with_logits(logit, label)
    counts = (inputs[-1][2] != 0).float()
    of_vectors = functional.binary_cross_entropy_with_logits(logit, label, weight=counts, reduction="sum")
    return of_vectors / counts.sum() + functional.binary_cross_entropy_with_logits(id_logit, label)


class Trained:
    """A click model with its embeddings and optimizers."""

    def __init__(self, arrays, weights, constants, has_vectors, factorised, is_compiled):
        self.arrays, self.has_vectors = arrays, has_vectors
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(weights[f"{name}_table"].clone(), freeze=False, sparse=True)
            for name in ("user", "item", "category")
        )
        self.model = ClickModel(weights, constants, has_vectors, factorised)
        self.losses, self.forward = losses, self.model
        if is_compiled:
            self.losses = torch.compile(losses, dynamic=False)
            self.forward = torch.compile(self.model, dynamic=False)
        dense = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        rate, of_tables, epsilon = constants.learning_rate, constants.embedding_learning_rate, constants.epsilon
        self.optimizers = [torch.optim.Adam(dense, lr=rate, eps=epsilon)]
        self.optimizers.append(torch.optim.SparseAdam(self.tables.parameters(), lr=of_tables, eps=epsilon))

    def inputs(self, rows, histories):
        """What the model takes of the first so many rows, with so many histories and users."""
        users, items, categories = self.tables
        a = self.arrays
        of_item, behaviors = slice(0, rows), slice(0, histories)
        target = torch.cat([items(a["item"][of_item]), categories(a["category"][of_item])], -1)
        history = torch.cat([items(a["behaviors"][behaviors]), categories(a["behavior_categories"][behaviors])], -1)
        inputs = users(a["user"][behaviors]), target, history, a["mask"][behaviors]
        if not self.has_vectors:
            return inputs
        slots = a["target_slots"][of_item], a["slots"][behaviors]
        return *inputs, (a["table"], a["scales"], *slots)

    def step(self):
        label = self.arrays["label"].float()
        loss = self.losses(self.model, self.inputs(len(label), len(label)), label)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def rank(self, num_candidates, is_shared):
        user, target, history, mask, *vectors = self.inputs(num_candidates, 1)
        if not is_shared:  # as a model that was trained on rows takes it: the history once per candidate
            table, scales, target_slots, slots = vectors[0]
            rows = (num_candidates, -1)
            user, mask, slots = user.expand(rows), mask.expand(rows), slots.expand(rows)
            history, vectors = history.expand(num_candidates, -1, -1), [(table, scales, target_slots, slots)]
        logit, id_logit = self.forward(user, target, history, mask, *vectors)
        return torch.sigmoid(torch.where(vectors[0][2] != 0, logit, id_logit))


def sides(arrays, weights, constants):
    """Returns every side by name: a call without arguments that returns a tensor."""
    def simtier(count, compiled):
        def call(target, target_scales, behaviors, behaviors_scales, mask):
            cosine = similarity(target, target_scales, behaviors, behaviors_scales)
            return count(cosine, mask, constants.num_tiers)
        call = torch.compile(call, dynamic=False) if compiled else call
        inputs = [arrays[f"simtier_{part}"] for part in ("target", "target_scales", "rows", "scales", "mask")]
        return torch.inference_mode()(lambda: call(*inputs))

    found = {}
    for suffix, compiled in (("eager", False), ("compile", True)):
        found[f"simtier scatter {suffix}"] = simtier(by_scatter, compiled)
        found[f"simtier comparison {suffix}"] = simtier(by_comparison, compiled)
        for form, factorised in (("", False), ("factorised ", True)):
            ranked = Trained(arrays, weights["multimodal"], constants, True, factorised, compiled)
            found[f"rank {form}{suffix}"] = lambda m=ranked, f=factorised: m.rank(constants.candidates, is_shared=f)
            for name in ("id", "multimodal"):
                trained = Trained(arrays, weights[name], constants, name == "multimodal", factorised, compiled)
                found[f"{name} step {form}{suffix}"] = trained.step
    return found


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    constants = Constants(**json.loads((folder / CONSTANTS).read_text()))
    torch.set_num_threads(constants.threads)
    loaded = {}
    for name in ("arrays", "id", "multimodal"):
        with np.load(folder / f"{name}.npz") as file:
            loaded[name] = {key: torch.from_numpy(file[key]) for key in file.files}
    calls = sides(loaded.pop("arrays"), loaded, constants)
    facts = {"sides": sorted(calls), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        for _ in range(asked["calls"]):
            result = calls[asked["side"]]()
        seconds = (time.perf_counter() - start) / asked["calls"]
        answer = {"seconds": seconds}
        if asked.get("digits"):
            np.save(folder / "digits.npy", result.numpy())
        print(json.dumps(answer), flush=True)
