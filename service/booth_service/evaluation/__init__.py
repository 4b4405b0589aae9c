"""What the paper measures, as the paper measures it; knows neither Ray nor S3."""
