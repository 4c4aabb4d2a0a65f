#!/usr/bin/env python3
"""Times PyTorch, and vLLM's kernels where their library is given, on the work that moe-bench measures.

CPU: wall clock, median, taking turns with a copy of the same bytes. CUDA: a graph of 20 calls, the median of 15
replays by events, with the copy of the same bytes measured the same way in the same run. Writes JSON in the schema of
moe-bench (benches/README.md), for `moe-bench --merge FILE`.

    peers.py --out peers.json                                  PyTorch on the CPU, and on CUDA where there is a device
    peers.py --device cuda --vllm _moe_C_stable_libtorch.abi3.so --vllm-quant _C_stable_libtorch.abi3.so \\
        --out peers.json
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time

import torch

import extras

MODELS = {"dsv3": (7168, 256, 8), "qwen3-30b": (2048, 128, 8), "mixtral": (4096, 8, 2)}
TOKENS = [1, 8, 32, 128, 512, 1024, 4096, 16384]
GRID = ["plan", "gather", "permute", "combine", "route", "route_grouped"]
OPS = [*GRID, *extras.OPS]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
CALLS, REPLAYS = 20, 15
SCALE_BLOCK = 128
COLD_TOKENS = 128
FLUSH_BYTES = 128 << 20
INDEX_BYTES = 4
GROUPS, TOPK_GROUPS, SCALING = extras.GROUPS, extras.TOPK_GROUPS, extras.SCALING  # of the grouped router


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda known, kind=str: lambda text: [pick(known, kind(item)) for item in text.split(",")]
    parser.add_argument("--device", choices=["all", "cpu", "cuda"], default="all")
    parser.add_argument("--models", type=names(MODELS), default=list(MODELS))
    parser.add_argument("--tokens", type=lambda text: [int(t) for t in text.split(",")], default=TOKENS)
    parser.add_argument("--ops", type=names(OPS), default=OPS)
    parser.add_argument("--dtype", type=names([*DTYPES, "f8e4m3"]), default=["bf16"])
    parser.add_argument("--routing", type=names(["uniform", "all-to-one", "ep8"]), default=["uniform"])
    parser.add_argument("--vllm", metavar="LIB", help="vLLM's _moe_C_stable_libtorch.abi3.so")
    parser.add_argument("--vllm-quant", metavar="LIB", help="vLLM's _C_stable_libtorch.abi3.so, of the same release")
    parser.add_argument("--cold", action="store_true", help="also with the L2 overwritten before each call, T <= 128")
    parser.add_argument("--quick", action="store_true", help="fewer samples on the CPU")
    parser.add_argument("--out", default="peers.json")
    return parser.parse_args()


def pick(known, item):
    if item not in known:
        raise argparse.ArgumentTypeError(f"no '{item}'; there are {', '.join(known)}")
    return item


def cpu_name():
    name = platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            name = next((l.split(":", 1)[1].strip() for l in info if l.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {cores()} cores"


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Case:
    """The tensors of one batch. Index tensors that a program keeps between calls are made here."""

    def __init__(self, device, model, tokens, dtype, routing):
        self.hidden, self.experts, self.top_k = MODELS[model]
        self.device, self.model, self.tokens, self.dtype, self.routing = device, model, tokens, dtype, routing
        self.routes = tokens * self.top_k
        self.local = (self.experts + 7) // 8 if routing == "ep8" else self.experts
        random = torch.Generator().manual_seed(1)
        if routing == "all-to-one":
            ids = torch.full((tokens, self.top_k), self.experts // 2)
        else:
            ids = torch.rand(tokens, self.experts, generator=random).argsort(1)[:, : self.top_k]
        is_local = ids < self.local
        self.local_routes = int(is_local.sum())
        self.local_tokens = int(is_local.any(1).sum())
        self.ids = ids.to(torch.int32).contiguous().to(device)
        self.flat_ids = self.ids.flatten()
        order = self.flat_ids.argsort(stable=True)
        self.row_tokens = order // self.top_k
        self.slots = torch.empty_like(order)
        self.slots[order] = torch.arange(self.routes, device=device)
        self.weights = torch.full((tokens, self.top_k), 1 / self.top_k, device=device)

    def allocate(self):
        fp8 = self.dtype == "f8e4m3"
        kind = torch.float8_e4m3fn if fp8 else DTYPES[self.dtype]
        make = lambda rows: torch.randn(rows, self.hidden, device=self.device, dtype=torch.bfloat16).to(kind)
        self.x, self.y = make(self.tokens), make(self.routes)
        self.scales = torch.rand(self.tokens, -(-self.hidden // SCALE_BLOCK), device=self.device) if fp8 else None
        self.rows_out = torch.empty_like(self.y)
        self.logits = torch.randn(self.tokens, self.experts, device=self.device, dtype=torch.bfloat16 if fp8 else kind)
        self.bias = torch.randn(self.experts, device=self.device)
        self.tokens_out = torch.empty_like(self.x)

    def bytes(self, op):
        row = self.hidden * (1 if self.dtype == "f8e4m3" else DTYPES[self.dtype].itemsize)
        if self.dtype == "f8e4m3":
            row += -(-self.hidden // SCALE_BLOCK) * 4
        plan = INDEX_BYTES * (3 * self.routes + 2 * self.local + 1)
        moved = (self.local_tokens + self.local_routes) * row
        if op == "combine":
            return self.local_routes * row + self.tokens * row
        if op in ("route", "route_grouped"):
            bias = self.experts * 4 if op == "route_grouped" else 0
            return self.logits.numel() * self.logits.element_size() + bias + 2 * INDEX_BYTES * self.routes
        return {"plan": plan, "gather": moved, "permute": plan + moved}[op]

    def memory(self):
        size = 1 if self.dtype == "f8e4m3" else DTYPES[self.dtype].itemsize
        return 6 * (self.tokens + self.routes) * self.hidden * size


def torch_ways(case, op):
    """PyTorch's own operations; on the GPU with the counts that a grouped product needs."""
    if case.dtype == "f8e4m3" or case.routing == "ep8" or (op.startswith("route") and case.routing != "uniform"):
        return {}
    cuda = case.device.type == "cuda"

    def plan():
        order = case.flat_ids.argsort(stable=True)
        if not cuda:
            return order
        ones = torch.ones_like(case.flat_ids)
        counts = torch.zeros(case.experts, dtype=torch.int32, device=case.device)
        counts.scatter_add_(0, case.flat_ids.long(), ones)
        return order, counts.cumsum(0)

    def permute():
        order = plan()
        order = order[0] if cuda else order
        return case.x.index_select(0, order // case.top_k)

    def multiply_sum():
        rows = case.y[case.slots].view(case.tokens, case.top_k, case.hidden)
        return (rows * case.weights.to(rows.dtype).unsqueeze(-1)).sum(1)

    return {
        "plan": {"argsort": plan},
        "gather": {"index_select": lambda: case.x.index_select(0, case.row_tokens)},
        "permute": {"argsort + index_select": permute},
        "combine": {"index-multiply-sum": multiply_sum},
        "route_grouped": {"sigmoid, groups, topk": lambda: extras.grouped_topk(case)} if case.experts % GROUPS == 0 else {},
        "route": {"softmax + topk": lambda: torch.topk(torch.softmax(case.logits, -1, dtype=torch.float32), case.top_k)},
    }.get(op, {})


class Vllm:
    """vLLM's kernels with everything allocated beforehand."""

    def __init__(self, case):
        self.case = case
        ints = lambda *shape: torch.zeros(*shape, dtype=torch.int32, device=case.device)
        shape = (case.tokens, case.top_k)
        self.route_numbers = torch.arange(case.routes, dtype=torch.int32, device=case.device).view(shape)
        self.offsets = torch.zeros(case.local + 1, dtype=torch.int64, device=case.device)
        self.source = ints(case.routes)
        self.slots, self.sorted_experts, self.sorted_routes, self.sort_ids = (ints(*shape) for _ in range(4))
        self.top_ids, self.top_weights = ints(*shape), torch.zeros(*shape, device=case.device)
        size = torch.ops._moe_C.moe_permute_sort_workspace_size(case.routes, case.experts)
        self.workspace = torch.empty(size, dtype=torch.int8, device=case.device)
        self.expert_map = None
        if case.local != case.experts:
            local = torch.arange(case.experts, dtype=torch.int32, device=case.device)
            self.expert_map = torch.where(local < case.local, local, torch.full_like(local, -1))

    def permute(self):
        case = self.case
        self.source.fill_(case.routes)  # rows without a route keep this mark
        torch.ops._moe_C.moe_permute_with_scratch(
            case.x, case.ids, self.route_numbers, self.expert_map, case.experts, case.local, case.top_k, case.rows_out,
            self.offsets, self.slots, self.source, self.workspace, self.sorted_experts, self.sorted_routes,
            self.sort_ids,
        )
        if case.scales is not None:
            return case.scales[self.source.clamp(max=case.routes - 1) // case.top_k]

    def unpermute(self):
        case = self.case
        torch.ops._moe_C.moe_unpermute(
            case.y, case.weights, self.slots.flatten(), self.offsets, case.top_k, case.tokens_out
        )

    def route(self):
        case = self.case
        torch.ops._moe_C.topk_softmax(
            self.top_weights, self.top_ids, self.sorted_routes, case.logits, False, None
        )

    def route_grouped(self):
        case = self.case
        return torch.ops._moe_C.grouped_topk(
            case.logits, GROUPS, TOPK_GROUPS, case.top_k, True, SCALING, case.bias, 1  # 1: sigmoid
        )

    def ways(self, op):
        if op == "route" and self.case.dtype != "f8e4m3" and self.case.routing == "uniform":
            return {"topk_softmax": self.route}
        if op == "route_grouped" and self.case.dtype != "f8e4m3" and self.case.routing == "uniform":
            return {"grouped_topk": self.route_grouped} if self.case.experts >= 32 * GROUPS // 2 else {}
        if op == "permute":
            return {"moe_permute_with_scratch": self.permute}
        if op == "combine" and self.case.dtype != "f8e4m3":
            return {"moe_unpermute": self.unpermute}
        return {}


def copy_of(case, size, buffers):
    half = -(-size // 2)
    if buffers.get("len", 0) < half:
        buffers["from"] = torch.ones(half, dtype=torch.uint8, device=case.device)
        buffers["to"] = torch.ones(half, dtype=torch.uint8, device=case.device)
        buffers["len"] = half
    source, target = buffers["from"][:half], buffers["to"][:half]
    return lambda: target.copy_(source)


def time_cuda(jobs, cold=False):
    """Microseconds per call: graphs of CALLS calls, taking turns. With `cold`, the L2 is overwritten before each call
    and the time of that alone is taken off."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if cold else None
    jobs = {**jobs, "flush": lambda: None} if cold else jobs
    graphs = {}
    for name, job in jobs.items():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                job()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                if cold:
                    flush.fill_(0)
                job()
        graphs[name] = graph
    samples = {name: [] for name in jobs}
    for graph in graphs.values():
        graph.replay()
    torch.cuda.synchronize()
    for _ in range(REPLAYS):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            samples[name].append(start.elapsed_time(end) * 1e3 / CALLS)
    if cold:
        base = statistics.median(samples.pop("flush"))
        samples = {name: [max(us - base, 0.0) for us in times] for name, times in samples.items()}
    return samples


def time_cpu(jobs, quick):
    """Microseconds per call by the wall clock, taking turns; a sample takes at least 0.2 ms."""
    rounds, budget = (7, 0.3) if quick else (15, 1.5)
    calls = {}
    for name, job in jobs.items():
        job()
        start = time.perf_counter()
        job()
        calls[name] = max(1, min(10_000, int(2e-4 / max(time.perf_counter() - start, 1e-7))))
    samples = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            if len(samples[name]) >= 3 and sum(samples[name]) * calls[name] > budget * 1e6:
                continue
            start = time.perf_counter()
            for _ in range(calls[name]):
                job()
            samples[name].append((time.perf_counter() - start) * 1e6 / calls[name])
    return samples


def free_memory(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as info:
        return next(int(l.split()[1]) * 1024 for l in info if l.startswith("MemAvailable"))


def records_of(case, op, extra, samples, cache):
    """One record for each peer, in the fastest of its ways."""
    peers = extra.peers
    copy = statistics.median(samples["copy"]) if "copy" in samples else None
    for peer, ways in peers.items():
        times = {way: samples[f"{peer}/{way}"] for way in ways}
        if not times:
            continue
        order = sorted(times, key=lambda way: statistics.median(times[way]))
        best = times[order[0]]
        record = {
            "run": 0, "contender": peer, "kind": "peer", "device": f"{case.device.type}:0",
            "device_name": torch.cuda.get_device_name() if case.device.type == "cuda" else cpu_name(),
            "model": case.model, "op": op, "dtype": extra.dtype, "routing": case.routing, "tokens": case.tokens,
            "cache": cache, "us": statistics.median(best), "us_min": min(best), "samples": len(best),
            "bytes": extra.bytes, "copies": {"copy": copy} if copy else {}, "way": order[0],
        }
        if len(order) > 1:
            record["other_ways"] = {way: statistics.median(times[way]) for way in order[1:]}
        yield record


def measure(args, device, libraries, skipped):
    records = []
    for routing in args.routing:
        for dtype in args.dtype:
            for model in args.models:
                for tokens in args.tokens:
                    case = Case(device, model, tokens, dtype, routing)
                    if case.memory() > free_memory(device) * 0.8:
                        skipped.append(f"{model} {dtype} {routing} T={tokens} on {device.type}: not enough memory")
                        continue
                    case.allocate()
                    records += measure_case(args, case, libraries, skipped)
                    del case
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
    return records


def grid(case, op, vllm):
    """An operation of the grid, as the other families give theirs."""
    peers = {"torch": torch_ways(case, op)}
    if vllm:
        peers["vllm"] = vllm.ways(op)
    return extras.Extra(peers, case.bytes(op), case.dtype)


def working(extra, what, skipped):
    """The ways that run: a library can lack a kernel for this GPU or dtype."""
    jobs = {}
    for peer, ways in extra.peers.items():
        for way in list(ways):
            try:
                ways[way]()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                jobs[f"{peer}/{way}"] = ways[way]
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                del ways[way]
                skipped.append(f"{what}: {peer} {way}: {str(error).splitlines()[0][:120]}")
    return jobs


def measure_case(args, case, libraries, skipped):
    cuda, buffers = case.device.type == "cuda", {}
    libraries = libraries if cuda else {}
    vllm = Vllm(case) if "moe" in libraries else None
    if vllm:
        vllm.permute()  # unpermute needs its slots
    for op in args.ops:
        what = f"{case.device.type} {case.model} {case.dtype} {case.routing} T={case.tokens} {op}"
        print(what, file=sys.stderr)
        extra = grid(case, op, vllm) if op in GRID else extras.make(case, op, libraries)
        jobs = working(extra, what, skipped) if extra else {}
        if not jobs:
            continue
        jobs["copy"] = copy_of(case, case.bytes("gather") if op == "permute" else extra.bytes, buffers)
        yield from records_of(case, op, extra, time_cuda(jobs) if cuda else time_cpu(jobs, args.quick), "hot")
        if cuda and args.cold and case.tokens <= COLD_TOKENS:
            yield from records_of(case, op, extra, time_cuda(jobs, cold=True), "cold")


def main():
    args = arguments()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    devices, skipped = {}, []
    libraries = {}
    if args.vllm:
        torch.ops.load_library(args.vllm)
        libraries["moe"] = torch.ops._moe_C
        versions["vllm library"] = os.path.basename(args.vllm)
    if args.vllm_quant:
        torch.ops.load_library(args.vllm_quant)
        libraries["quant"] = torch.ops._C
    wanted = []
    if args.device in ("all", "cpu"):
        wanted.append(torch.device("cpu"))
        devices["cpu:0"] = {"name": cpu_name(), "torch threads": str(torch.get_num_threads())}
    if args.device == "cuda" or (args.device == "all" and torch.cuda.is_available()):
        wanted.append(torch.device("cuda", 0))
        devices["cuda:0"] = {"name": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    with torch.inference_mode():
        records = [record for device in wanted for record in measure(args, device, libraries, skipped)]
    run = {
        "program": "peers.py", "args": sys.argv[1:],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "commit": None,
        "machine": f"{platform.system().lower()} {platform.machine()}", "cpu": cpu_name(), "cores": cores(),
        "versions": versions, "devices": devices, "skipped": skipped,
    }
    with open(args.out, "w") as out:
        json.dump({"schema": 1, "runs": [run], "records": records}, out, indent=1)
    print(f"wrote {args.out}: {len(records)} records", file=sys.stderr)


if __name__ == "__main__":
    main()
