"""Booth's client: personalise an image model with a few photos, on a Booth service."""

from booth.client import Client
from booth.contract.drawing import PromptEdit
from booth.contract.jobs import Event, JobFailure, Params, Progress, ScoringOptions, TrainingOptions
from booth.contract.scores import Score
from booth.contract.states import FailureReason, JobState, RunState
from booth.drawing import DrawingProgress
from booth.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BoothError,
    BoothWarning,
    BusyError,
    ConfigError,
    ConflictError,
    FormatError,
    ImageValidationError,
    JobCancelledError,
    JobError,
    JobFailedError,
    NoServerError,
    NotFoundError,
    PausedError,
    TransferError,
    UnavailableError,
    ValidationError,
    WaitTimeoutError,
)
from booth.evaluations import Evaluation
from booth.generations import BulkPicture, Generation
from booth.groups import Cell, Group
from booth.jobs import Job
from booth.lora import Lora
from booth.models import Model
from booth.pictures import GeneratedImage
from booth.reports import Report
from booth.samples import SamplePicture, SampleStrip
from booth.subjects import Photo, Subject

__all__ = [
    "APIConnectionError",
    "APIError",
    "APITimeoutError",
    "AuthenticationError",
    "BoothError",
    "BoothWarning",
    "BulkPicture",
    "BusyError",
    "Cell",
    "Client",
    "ConfigError",
    "ConflictError",
    "DrawingProgress",
    "Evaluation",
    "Event",
    "FailureReason",
    "FormatError",
    "GeneratedImage",
    "Generation",
    "Group",
    "ImageValidationError",
    "Job",
    "JobCancelledError",
    "JobError",
    "JobFailedError",
    "JobFailure",
    "JobState",
    "Lora",
    "Model",
    "NoServerError",
    "NotFoundError",
    "Params",
    "PausedError",
    "Photo",
    "Progress",
    "PromptEdit",
    "Report",
    "RunState",
    "SamplePicture",
    "SampleStrip",
    "Score",
    "ScoringOptions",
    "Subject",
    "TrainingOptions",
    "TransferError",
    "UnavailableError",
    "ValidationError",
    "WaitTimeoutError",
]
