"""The one-machine stack that `boothctl up` runs: S3 server, Ray head, control plane, Serve application."""
