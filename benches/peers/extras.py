"""Peers of the operations beside the grid: block tables, chunk sorts, rows that are quantised on the way, and the
activation. The names, sizes and bytes are those of benches/src/extras."""

import torch

OPS = ["block_table", "chunk_sort", "gather_fp8_token", "gather_fp8_block", "swiglu", "swiglu_fp8_block"]
GROUPS, TOPK_GROUPS, SCALING = 8, 4, 2.5
BLOCK, RANKS, GROUP = 64, 8, 128
E4M3_MAX = 448.0
INTERMEDIATE = {"dsv3": 2048, "qwen3-30b": 768, "mixtral": 14336}


class Extra:
    """An operation of a case: `peers` {peer: {way: job}}, the bytes that it moves, and what stands as its dtype."""

    def __init__(self, peers, size, dtype):
        self.peers, self.bytes, self.dtype = peers, size, dtype


def make(case, op, vllm):
    """The operation ready to be timed, or None where it does not exist for the case. `vllm` holds the namespaces of the
    libraries that were loaded: "moe" and "quant"."""
    if case.routing != "uniform" or case.dtype != "bf16":
        return None
    if op == "block_table":
        return block_table(case, vllm)
    if op == "chunk_sort":
        return chunk_sort(case)
    return gather_fp8(case, op, vllm) if op.startswith("gather") else swiglu(case, op, vllm)


def grouped_topk(case):
    """DeepSeek-V3's router, as its own code has it."""
    scores = case.logits.float().sigmoid()
    choice = (scores + case.bias).view(case.tokens, GROUPS, -1)
    groups = choice.topk(2, dim=-1)[0].sum(-1).topk(TOPK_GROUPS, dim=-1)[1]
    mask = torch.zeros(case.tokens, GROUPS, dtype=torch.bool, device=case.device).scatter_(1, groups, True)
    choice = choice.masked_fill(~mask.unsqueeze(-1), float("-inf")).view(case.tokens, case.experts)
    ids = choice.topk(case.top_k, dim=-1)[1]
    weights = scores.gather(1, ids)
    return weights / weights.sum(-1, keepdim=True) * SCALING, ids.to(torch.int32)


def block_table(case, vllm):
    if "moe" not in vllm:
        return None
    length = case.routes + min(case.experts, case.routes) * (BLOCK - 1)
    length = -(-length // BLOCK) * BLOCK
    ints = lambda n: torch.empty(n, dtype=torch.int32, device=case.device)
    sorted_ids, expert_ids, number = ints(length), ints(length // BLOCK), ints(1)
    call = lambda: vllm["moe"].moe_align_block_size(
        case.ids, case.experts, BLOCK, sorted_ids, expert_ids, number, None)
    size = 4 * (case.routes + case.experts + 1 + length + length // BLOCK + 1)
    return Extra({"vllm": {"moe_align_block_size": call}}, size, "i32")


def chunk_sort(case):
    """Sizes and order are known to the host here; ours reads them on the device."""
    chunks, rows = case.experts * RANKS, case.routes
    sizes = [rows // chunks] * chunks
    sizes[0] += rows % chunks
    order = [i % RANKS * case.experts + i // RANKS for i in range(chunks)]

    def split_cat():
        parts = torch.split(case.y, sizes)
        return torch.cat([parts[i] for i in order])

    return Extra({"torch": {"split + cat": split_cat}}, 4 * rows * case.hidden, "bf16")


def quantise(x, group):
    """f8e4m3 with one scale for each `group` elements of a row."""
    parts = x.float().view(x.shape[0], -1, group)
    scales = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / E4M3_MAX
    values = (parts / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return values.view(x.shape), scales.squeeze(-1)


def vllm_quant(x, group, quant):
    """vLLM's way to do the same, into memory that is there."""
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[0], x.shape[1] // group, device=x.device)

    def run():
        if group == x.shape[1]:
            quant.dynamic_per_token_scaled_fp8_quant(values, x, scales, None)
        else:
            quant.per_token_group_fp8_quant(x, values, scales, group, 1e-10, -E4M3_MAX, E4M3_MAX, False, False, False)
        return values, scales

    return run


def gather_fp8(case, op, vllm):
    """Each token is quantised once, then values and scales are gathered."""
    group = case.hidden if op == "gather_fp8_token" else GROUP

    def gather(quantised):
        values, scales = quantised()
        return values.view(torch.uint8).index_select(0, case.row_tokens), scales.index_select(0, case.row_tokens)

    peers = {"torch": {"quantise + index_select": lambda: gather(lambda: quantise(case.x, group))}}
    if "quant" in vllm:
        run = vllm_quant(case.x, group, vllm["quant"])
        peers["vllm"] = {"quantise + index_select": lambda: gather(run)}
        if "moe" in vllm:
            out = torch.empty(case.routes, case.hidden, dtype=torch.float8_e4m3fn, device=case.device)
            source = case.row_tokens.to(torch.int32)

            def shuffle():
                values, scales = run()
                vllm["moe"].shuffle_rows(values, source, out)
                return scales.index_select(0, case.row_tokens)

            peers["vllm"]["quantise + shuffle_rows"] = shuffle
    size = 2 * case.tokens * case.hidden + case.routes * (case.hidden + 4 * (case.hidden // group))
    return Extra(peers, size, "bf16")


def swiglu(case, op, vllm):
    width = INTERMEDIATE[case.model]
    x = torch.randn(case.routes, 2 * width, device=case.device, dtype=torch.bfloat16)
    out = torch.empty(case.routes, width, device=case.device, dtype=torch.bfloat16)
    plain = op == "swiglu"

    def activate():
        gate, up = x.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up

    peers = {"torch": {"silu, mul" if plain else "silu, mul, quantise":
                       activate if plain else lambda: quantise(activate(), GROUP)}}
    if "quant" in vllm:
        quant = vllm["quant"]
        if plain:
            peers["vllm"] = {"silu_and_mul": lambda: quant.silu_and_mul(out, x)}
        else:
            values = torch.empty(case.routes, width, dtype=torch.float8_e4m3fn, device=case.device)
            scales = torch.empty(case.routes, width // GROUP, device=case.device)
            separate = vllm_quant(out, GROUP, quant)
            peers["vllm"] = {
                "silu_and_mul_per_block_quant":
                    lambda: quant.silu_and_mul_per_block_quant(values, x, scales, GROUP, None, False),
                "silu_and_mul, quantise": lambda: (quant.silu_and_mul(out, x), separate()),
            }
    written = 2 * width if plain else width + 4 * (width // GROUP)
    return Extra(peers, case.routes * (4 * width + written), "bf16")
