"""C9: bringing a resident model of Stable Diffusion 1.5's shape into the live modules, over one flat copy of its bytes.

Both arms copy host memory on one thread, in turn, in this process: nearly 2 GB in 6 GB of memory. Every live value is
compared with the model's before the clocks count.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from fetch import shapes
from figure import at_most, line
from torch import nn

from booth_service.inference.host_memory import host_memory
from booth_service.inference.skeleton import Skeleton
from booth_service.inference.tensor_file import tensors_in
from booth_service.inference.weights import Weights

TURNS = 9
GOAL = at_most(1.3)


def report(name: str) -> bool:
    """Measure and print C9; True where it reaches its goal."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="booth-activation-") as place:
        skeleton, memory = resident(Path(place))
    weights = {component: tensors_in(component, each) for component, each in memory.items()}
    targets = [(torch.empty_like(each), each) for each in memory.values()]
    activate(skeleton, weights)
    compare(skeleton, weights)
    flat(targets)
    ratios, spent = [], []
    for turn in range(TURNS):
        arms = [lambda: activate(skeleton, weights), lambda: flat(targets)]
        took = [seconds(arm) for arm in (arms if turn % 2 else reversed(arms))]
        ours, plain = took if turn % 2 else reversed(took)
        ratios.append(ours / plain)
        spent.append(ours)
    total, tensors = sum(each.nbytes for each in memory.values()), sum(len(each) for each in weights.values())
    rate = total / statistics.median(spent) / 1e9
    title = f"activating {total / 1e9:.2f} GB in {tensors} tensors ({rate:.1f} GB/s) over one flat copy of the bytes"
    print(line(name, ratios, GOAL, title), flush=True)
    return GOAL.is_reached(statistics.median(ratios))


def seconds(arm: Callable[[], object]) -> float:
    began = time.perf_counter()
    arm()
    return time.perf_counter() - began


@torch.no_grad()
def flat(targets: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The bytes of each component in one copy."""
    for target, source in targets:
        target.copy_(source)


def activate(skeleton: Skeleton, weights: Weights) -> None:
    """The model is live."""
    for component, tensors in weights.items():
        skeleton.fill(component, "model", tensors)


def compare(skeleton: Skeleton, weights: Weights) -> None:
    """Raises AssertionError unless every tensor of the modules is the model's, bit by bit."""
    for component, tensors in weights.items():
        state = getattr(skeleton.pipeline, component).state_dict()
        assert state.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(state[name].view(torch.int16), tensor.view(torch.int16)), name


def resident(folder: Path) -> tuple[Skeleton, dict[str, torch.Tensor]]:
    """A pipeline's trained modules in half precision, and a model's files in memory: random bits."""
    modules = {path.split("/")[0]: module.half().to_empty(device="cpu") for path, module in shapes()}
    memory = {}
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for component, module in modules.items():
        header = header_of(module)
        memory[component] = host_memory(len(header) + sum(t.nbytes for t in module.state_dict().values()), pinned=False)
        whole = len(memory[component]) // 8 * 8
        memory[component][:whole].view(torch.int64).random_()
        memory[component][: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        (folder / component).mkdir()
        with (folder / component / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(memory[component]))  # names alone are read from it
    return Skeleton("base", folder, SimpleNamespace(**modules, device=torch.device("cpu"))), memory


def header_of(module: nn.Module) -> bytes:
    """The first bytes of a safetensors file with the module's tensors."""
    header, end = {}, 0
    for name, tensor in module.state_dict().items():
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    body = json.dumps(header).encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body
