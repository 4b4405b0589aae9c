"""The mathematics of DreamBooth on diffusers' modules; knows neither Ray nor S3."""
