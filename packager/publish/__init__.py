"""Publishing: a bundle's targets go where people load them from."""

from packager.publish.hub import publish_hub
from packager.publish.plan import PublishedFile, PublishedRepo, RepoPlan, plan_repos

__all__ = ["PublishedFile", "PublishedRepo", "RepoPlan", "plan_repos", "publish_hub"]
