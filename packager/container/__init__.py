"""A server as containers: images, compose, Kubernetes, Ray and monitoring, as texts."""

from packager.container.render import container_files, render_container

__all__ = ["container_files", "render_container"]
