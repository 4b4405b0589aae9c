"""The wire between client and service: pydantic models and nothing else that runs."""
