"""The weights of one step of a run in a pipeline of its base model, piece by piece out of a stored checkpoint."""

import torch
from torch import Tensor, nn

from booth.contract.jobs import Params
from booth_service.diffusion.placeholder import row_of
from booth_service.errors import CheckpointMismatch
from booth_service.storage.s3 import ObjectStore
from booth_service.training import checkpoint


def put_checkpoint(modules: dict[str, nn.Module], params: Params, manifest_key: str, store: ObjectStore) -> None:
    """The modules (by folder name) hold what publishing at that checkpoint would give: the average where the run keeps
    one, else the masters, cast to the modules' own format.

    One file of the checkpoint is in memory beside them. Raises StorageError, CheckpointMismatch; then they hold some of
    both.
    """
    parameters = {
        f"{folder}.{name}": parameter
        for folder, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    kind = checkpoint.EMA if params.ema_decay else "fp32"
    for name, start, values in checkpoint.stored_weights(manifest_key, kind, store.get):
        put_values(parameters, name, start, values)


@torch.no_grad()
def put_values(parameters: dict[str, nn.Parameter], name: str, start: int, values: Tensor) -> None:
    """Elements from `start` on of what is trained under this name are these 1-D values, in the parameter's own format.

    What is trained is a whole parameter or, of Textual Inversion, one row of it.
    """
    row = row_of(name)
    whole_name = name if row is None else row[0]
    if whole_name not in parameters:
        raise CheckpointMismatch(f"the checkpoint's {name} is no parameter of the base model")
    target = parameters[whole_name] if row is None else parameters[whole_name][row[1]]
    target.view(-1).narrow(0, start, values.numel()).copy_(values)
