"""A self-hosted application-streaming service that speaks the Amazon AppStream 2.0 API."""

__version__ = "0.1.0"
