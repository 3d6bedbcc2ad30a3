# The production image: requirements/base.txt, the package, nothing for development.
FROM python:3.11-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements/base.txt requirements/local.txt requirements/
RUN python -m venv /opt/weighbridge \
    && /opt/weighbridge/bin/pip install --require-hashes -r requirements/base.txt
# The build backend is pinned with hashes too, and stays behind in this stage.
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements/local.txt
COPY pyproject.toml README.md ./
COPY billing billing
COPY workers workers
COPY alembic alembic
COPY scripts scripts
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/weighbridge/bin/pip install --no-deps --no-index /wheels/*.whl \
    && /opt/weighbridge/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/weighbridge --create-home weighbridge \
    && mkdir /var/lib/weighbridge/spool /var/lib/weighbridge/archive \
    && chown weighbridge:weighbridge /var/lib/weighbridge/spool /var/lib/weighbridge/archive
COPY --from=build /opt/weighbridge /opt/weighbridge
WORKDIR /app
ENV PATH=/opt/weighbridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WEIGHBRIDGE_LOCAL_DIR=/var/lib/weighbridge \
    WEIGHBRIDGE_SPOOL_DIR=/var/lib/weighbridge/spool \
    WEIGHBRIDGE_ARCHIVE_DIR=/var/lib/weighbridge/archive
# Not under Flower's own default name: that one it passes over in silence where it is missing, and would
# then start without a password.
RUN ln -s "$(python -m weighbridge.flowerconfig)" flower-settings.py
USER weighbridge
# Events that could reach neither Redis nor RabbitMQ wait in the first, and slips of leased runs: keep it
# over restarts. The second has archived months, and is then the only place that has them.
VOLUME ["/var/lib/weighbridge/spool", "/var/lib/weighbridge/archive"]
# What every part needs: its servers. Parts with a check of their own name it in docker-compose.yml.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 CMD ["billing", "doctor"]
CMD ["billing", "--help"]
