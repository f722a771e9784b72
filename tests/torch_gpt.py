"""nanochat's architecture in torch, written from its description: the oracle of test_gpt.

Functions of a state dict under nanochat's names. Rotary positions are complex products here and
attention is torch's own, so that little is shared with ours. Torch is imported inside.
"""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Features:
    """What the weights do not show."""

    theta: float = 100_000.0
    qk_norm: bool = True
    qk_scale: float = 1.2
    gate_scale: float = 3.0
    short_window: int = 4
    softcap: float = 15.0
    rounded: bool = False


def random_state(config, *, values=True, gate_channels=12, scalars=True, smear=True, backout=True):
    """A state dict of normal weights, large enough that every part matters."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def normal(*shape, std=0.3):
        return torch.randn(*shape, generator=generator) * std

    depth, width = config["n_layer"], config["n_embd"]
    kv_width = config["n_kv_head"] * (width // config["n_head"])
    vocab = -(-config["vocab_size"] // 64) * 64
    state = {"transformer.wte.weight": normal(vocab, width), "lm_head.weight": normal(vocab, width)}
    for i in range(depth):
        name = f"transformer.h.{i}"
        for part, rows in (("c_q", width), ("c_k", kv_width), ("c_v", kv_width), ("c_proj", width)):
            state[f"{name}.attn.{part}.weight"] = normal(rows, width)
        state[f"{name}.mlp.c_fc.weight"] = normal(4 * width, width)
        state[f"{name}.mlp.c_proj.weight"] = normal(width, 4 * width, std=0.1)
        if values and (depth - 1 - i) % 2 == 0:
            state[f"{name}.attn.ve_gate.weight"] = normal(config["n_kv_head"], gate_channels)
            state[f"value_embeds.{i}.weight"] = normal(vocab, kv_width, std=1.0)
    if scalars:
        state["resid_lambdas"] = 1 + normal(depth)
        state["x0_lambdas"] = normal(depth)
    if smear:
        state["smear_gate.weight"] = normal(1, 24)
        state["smear_lambda"] = 0.5 + normal(1)
    if backout:
        state["backout_lambda"] = 0.5 + normal(1)
    return state


def save(folder, step, config, state):
    """As nanochat writes a compiled model's checkpoint."""
    import torch

    weights = {f"_orig_mod.{name}": value for name, value in state.items()}
    torch.save(weights, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(
        json.dumps({"model_config": config, "step": step})
    )


def norm(x):
    import torch

    return torch.nn.functional.rms_norm(x, x.shape[-1:])


def turned(x, theta, rounded):
    """Pairs `(x_e, x_{e + E/2})` as complex numbers, times `exp(−i t theta^(−2e/E))`."""
    import torch

    time, half = x.shape[1], x.shape[-1] // 2
    speed = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(time, dtype=torch.float64)[:, None] * speed
    turn = torch.polar(torch.ones_like(angle), -angle).to(torch.complex64)[None, :, None]
    if rounded:
        turn = torch.complex(*(v.bfloat16().float() for v in (turn.real, turn.imag)))
    pairs = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def attention(state, name, x, tokens, config, features, short):
    import torch

    batch, time, width = x.shape
    size = width // config["n_head"]
    q, k, v = (
        (x @ state[f"{name}.attn.{part}.weight"].T).view(batch, time, -1, size)
        for part in ("c_q", "c_k", "c_v")
    )
    gate_weight = state.get(f"{name}.attn.ve_gate.weight")
    if gate_weight is not None:
        gate = torch.sigmoid(x[..., : gate_weight.shape[1]] @ gate_weight.T)
        table = state[f"value_embeds.{name.rsplit('.', 1)[1]}.weight"]
        v = v + features.gate_scale * gate.unsqueeze(-1) * table[tokens].view_as(v)
    q, k = (turned(x, features.theta, features.rounded) for x in (q, k))
    if features.qk_norm:
        q, k = norm(q) * features.qk_scale, norm(k) * features.qk_scale
    past = torch.arange(time)[:, None] - torch.arange(time)
    mask = (past >= 0) & (past <= (features.short_window if short else time))
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    return out.transpose(1, 2).reshape(batch, time, width) @ state[f"{name}.attn.c_proj.weight"].T


def logits(state, tokens, config, features):
    """`[B, T, C]` of int64 tokens `[B, T]`."""
    import torch

    depth, pattern = config["n_layer"], config["window_pattern"]
    x = norm(state["transformer.wte.weight"][tokens])
    if "smear_lambda" in state:
        gate = torch.sigmoid(x[:, 1:, :24] @ state["smear_gate.weight"].T) * state["smear_lambda"]
        x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
    start, streams = x, []
    for i in range(depth):
        if "resid_lambdas" in state:
            x = state["resid_lambdas"][i] * x + state["x0_lambdas"][i] * start
        name = f"transformer.h.{i}"
        short = pattern[i % len(pattern)] == "S" and i < depth - 1
        x = x + attention(state, name, norm(x), tokens, config, features, short)
        up = torch.relu(norm(x) @ state[f"{name}.mlp.c_fc.weight"].T).square()
        x = x + up @ state[f"{name}.mlp.c_proj.weight"].T
        streams.append(x)
    if "backout_lambda" in state:
        x = x - state["backout_lambda"] * streams[depth // 2]
    out = (norm(x) @ state["lm_head.weight"].T)[..., : config["vocab_size"]]
    return features.softcap * torch.tanh(out / features.softcap) if features.softcap else out
