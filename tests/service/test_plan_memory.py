"""The plan's model states against the tensors that a real DeepSpeed engine holds, on two gloo ranks."""

import gc
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from booth_service.plan_memory import buffer_bytes, frozen_bytes, state_bytes, usable_bytes

pytestmark = pytest.mark.ranks

RANKS = 2
ENGINES = [(stage, bf16) for stage in (1, 2, 3) for bf16 in (True, False)]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Bytes that rank 0 holds at its fullest, by stage and precision, and the number of parameters."""
    path = tmp_path_factory.mktemp("held") / "bytes.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(measure_engines, args=(port, str(path)), nprocs=RANKS)
    return json.loads(path.read_text())


def measure_engines(rank: int, port: int, path: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    gc.freeze()  # what the imports made is looked through no more: most of the time went there
    measured = {f"{stage} {bf16}": fullest_bytes(stage, bf16) for stage, bf16 in ENGINES}
    if rank == 0:
        Path(path).write_text(json.dumps({**measured, "parameters": sum(p.numel() for p in tiny_unet().parameters())}))
    dist.destroy_process_group()


def fullest_bytes(stage: int, bf16: bool) -> int:
    """Two steps of two micro-batches; the most bytes of tensors at the ends of backward and in the optimizer."""
    gc.collect()
    before = {storage._cdata for storage in live_storages()}
    engine = tiny_engine(stage, bf16)
    dtype = torch.bfloat16 if bf16 else torch.float32
    seen: list[int] = []

    def look() -> None:
        gc.collect()  # autograd leaves cycles
        seen.append(sum({s._cdata: s.nbytes() for s in live_storages() if s._cdata not in before}.values()))

    inner = engine.optimizer.optimizer
    step = inner.step
    inner.step = lambda *given, **named: (look(), step(*given, **named))[1]
    for _ in range(4):
        noise = torch.randn(1, 4, 8, 8).to(dtype)
        loss = engine(noise, torch.tensor([5]), torch.randn(1, 7, 32).to(dtype)).sample.float().pow(2).mean()
        engine.backward(loss)
        del loss, noise
        look()
        engine.step()
    engine.destroy()
    return max(seen)


def live_storages() -> Iterator[torch.UntypedStorage]:
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter) and not found.is_meta:
            yield found.untyped_storage()
            if found.is_leaf and found.grad is not None:
                yield found.grad.untyped_storage()


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def tiny_engine(stage: int, bf16: bool):
    unet = tiny_unet()
    small = (
        5_000  # buckets and weights that stage 3 does not shard are of fixed size: next to nothing beside the states
    )
    zero = {
        "stage": stage,
        "reduce_bucket_size": small,
        "allgather_bucket_size": small,
        "overlap_comm": bf16,
        "contiguous_gradients": True,
    }
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": small, "stage3_param_persistence_threshold": 64}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(list(unet.parameters()), lr=1e-5)
    return deepspeed.initialize(model=unet, optimizer=optimizer, config=config, dist_init_required=False)[0]


@pytest.mark.parametrize(("stage", "bf16"), ENGINES)
def test_states_are_those_of_a_real_engine(held: dict[str, int], stage: int, bf16: bool) -> None:
    predicted = state_bytes(held["parameters"], RANKS, stage, bf16=bf16)
    assert predicted == pytest.approx(held[f"{stage} {bf16}"], rel=0.1)


def test_states_of_a_plain_optimizer_are_those_it_holds() -> None:
    """Stage 0: fp32 weights, gradients and moments; the bf16 copies are autocast's and gone after backward."""
    unet = tiny_unet()
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, 32)).sample.pow(2).mean().backward()
    optimizer.step()
    tensors = [t for p in unet.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
    parameters = sum(p.numel() for p in unet.parameters())
    held = sum(tensor.nbytes for tensor in tensors)
    assert state_bytes(parameters, 1, 0, bf16=False) == pytest.approx(held, rel=0.01)
    assert state_bytes(parameters, 1, 0) - state_bytes(parameters, 1, 0, bf16=False) == 2 * parameters


@given(parameters=st.integers(1000, 10**10), ranks=st.integers(2, 64), bf16=st.booleans(), ema=st.booleans())
def test_states_shrink_with_ranks_and_stages(parameters: int, ranks: int, bf16: bool, ema: bool) -> None:
    def states(ranks: int, stage: int, offload_optimizer: bool = False, average: bool = ema) -> int:
        return state_bytes(parameters, ranks, stage, bf16=bf16, ema=average, offload_optimizer=offload_optimizer)

    rounding = 1
    for stage in (1, 2, 3):
        assert states(ranks + 1, stage) <= states(ranks, stage)
        assert states(ranks, stage, offload_optimizer=True) < states(ranks, stage)
        assert states(ranks, stage, average=False) <= states(ranks, stage, average=True)
    assert states(ranks, 3) - rounding <= states(ranks, 2) <= states(ranks, 1) + rounding


def test_eight_bit_moments_count_where_the_engine_has_them() -> None:
    assert state_bytes(100, 1, 0, eight_bit=True) == 100 * (4 + 4 + 2 + 2)
    assert state_bytes(100, 2, 1, eight_bit=True) == state_bytes(100, 2, 1)


def test_memory_set_aside() -> None:
    assert usable_bytes(24 * 10**9) == 22_040_000_000  # 24 less 4 %, less 1 GB for CUDA's own
    assert buffer_bytes(10**9, 0, 50_000_000) == 0
    assert buffer_bytes(10**9, 2, 50_000_000) == 200_000_000  # two buckets in bf16
    assert buffer_bytes(3 * 10**9, 3, 25_000_000) == 2_200_000_000  # and 1e9 live weights, and 5e7 fetched ahead
    assert frozen_bytes(100, 10, half=True) == 420
    assert frozen_bytes(100, 10, half=False) == 440
