"""Exceptions of the service. Each carries a reason and survives pickling, so that Ray brings it home whole.

ServiceError
  StorageError          the object store refused or did not answer
  ObjectMissing         a named object is not there
  DamagedObject         a stored object, or the record of one, is not what was written
  AttemptEnded          the control plane wants this attempt to stop (cancelled or superseded)
  DoesNotFit            no plan fits the devices
  NotFinite             the loss stopped being finite; names step and images
  BadWeights            weights failed verification
  BaseModelError        a base model folder cannot be used
  EncoderError          an encoder suite is not there, or cannot be used
  ScoreError            pictures or vectors that no score can be made of
  BadPhotos             stored photos cannot be decoded
  OutOfMemory           a training process ran out of device or host memory
  WorkerDied            a training process ended without saying why
  CheckpointMismatch    a checkpoint is of another job, or damaged
  MissingExtra          an option needs a package that is not installed
  CannotDraw            what is asked of a model cannot be drawn with it
  EngineBusy            more pictures wait than the engine takes
  DrawTimeout           a picture was not drawn within its time
"""

from booth.contract.states import FailureReason


class ServiceError(Exception):
    """Base of all; `reason` is what the job's owner is told."""

    reason = FailureReason.INTERNAL

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[str]]:
        return type(self), (self.detail,)


class StorageError(ServiceError):
    reason = FailureReason.STORAGE


class ObjectMissing(StorageError):
    pass


class DamagedObject(StorageError):
    pass


class AttemptEnded(ServiceError):
    reason = FailureReason.CANCELLED


class DoesNotFit(ServiceError):
    reason = FailureReason.DOES_NOT_FIT


class NotFinite(ServiceError):
    reason = FailureReason.NOT_FINITE


class BadWeights(ServiceError):
    reason = FailureReason.BAD_MODEL


class BaseModelError(ServiceError):
    reason = FailureReason.INTERNAL


class EncoderError(ServiceError):
    reason = FailureReason.CANNOT_SCORE


class ScoreError(ServiceError):
    reason = FailureReason.CANNOT_SCORE


class BadPhotos(ServiceError):
    reason = FailureReason.BAD_PHOTOS


class OutOfMemory(ServiceError):
    reason = FailureReason.OUT_OF_MEMORY


class WorkerDied(ServiceError):
    reason = FailureReason.WORKER_DIED


class CheckpointMismatch(ServiceError):
    reason = FailureReason.INTERNAL


class MissingExtra(ServiceError):
    reason = FailureReason.DOES_NOT_FIT


class CannotDraw(ServiceError):
    reason = FailureReason.CANNOT_DRAW


class EngineBusy(ServiceError):
    pass


class DrawTimeout(ServiceError):
    pass
