# The pipeline with all that it needs, as a user without rights. docs/containers.md says how to build and run it.
FROM python:3.11-slim-bookworm

# One of PyTorch's own indexes, such as that of its CPU builds; without one comes pip's default build.
ARG TORCH_INDEX

WORKDIR /opt/oct-anogan
COPY pyproject.toml constraints.txt environment.yml README.md LICENSE ./
COPY preprocessing preprocessing
COPY anogan anogan
COPY workflow workflow
COPY config config
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -e . \
    && python -m compileall -q preprocessing anogan workflow \
    && useradd --create-home --uid 1000 oct

# For any --user: caches of Snakemake and Matplotlib need a home, PyTorch and Snakemake ask for a name.
ENV HOME=/tmp USER=oct
USER 1000
WORKDIR /work
ENTRYPOINT ["snakemake", "--snakefile", "/opt/oct-anogan/workflow/Snakefile"]
CMD ["--help"]
