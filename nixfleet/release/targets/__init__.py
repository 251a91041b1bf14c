"""The kinds of places that a release is published to; `choice` has them all."""
