# lorapack itself as an image: release an adapter in a CI job after training, nothing to install.
#
#   docker build -f docker/packager.Dockerfile -t lorapack .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" lorapack \
#     release pirate --base /data/base --out /data/release
#
# For a build that can be repeated to the byte, pin the base by digest:
#   --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# A folder of wheels, mounted into the build, that pip looks into first (for an offline build or
# a torch build of your own).
ARG PIP_FIND_LINKS=""
# Merging and verifying run on the CPU, so the image takes torch's CPU build.
ARG PIP_EXTRA_INDEX_URL="https://download.pytorch.org/whl/cpu"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY docker/requirements-packager.txt docker/
COPY tests/requirements.lock tests/
# Every version with its hash, and nothing else. Only for processors other than x86-64, torch's CPU
# build is taken by its version: there the second command finds that it is missing.
RUN python3 -m venv /opt/lorapack \
    && /opt/lorapack/bin/pip install --require-hashes --no-deps \
        --requirement docker/requirements-packager.txt \
    && /opt/lorapack/bin/pip install --no-deps --constraint tests/requirements.lock torch
COPY pyproject.toml README.md LICENSE ./
COPY packager packager
COPY templates templates
COPY docker docker
RUN /opt/lorapack/bin/pip install --no-deps --no-build-isolation . \
    && /opt/lorapack/bin/pip check

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="lorapack" \
      org.opencontainers.image.description="Turns a trained LoRA adapter into releases that provably behave like it did in training" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 lorapack \
    && useradd --uid 10001 --gid 10001 --create-home lorapack \
    && mkdir /data \
    && chown lorapack:lorapack /data
COPY --from=build /opt/lorapack /opt/lorapack
ENV PATH=/opt/lorapack/bin:$PATH \
    PYTHONUNBUFFERED=1
# Numeric, so that a cluster's runAsNonRoot check can read it.
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["lorapack"]
CMD ["--help"]
