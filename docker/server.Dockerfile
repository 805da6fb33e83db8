# The server: answers from the registry. No torch, duckdb, kafka or evidently inside; it writes only the last good version.
# Build from the top of the repository:  docker build -f docker/server.Dockerfile -t relearnd-server:0.1.0 .
FROM python:3.12-slim-bookworm

RUN useradd --uid 10001 --user-group --create-home relearnd

WORKDIR /srv/relearnd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY daemon daemon
RUN python -m venv /opt/server \
 && /opt/server/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[serve]'
COPY configs configs
COPY policies policies
# So that a new volume, mounted here first, belongs to the user.
RUN install -d -o relearnd -g relearnd /var/lib/relearnd /var/lib/relearnd/registry \
    /var/lib/relearnd/registry/servers /var/lib/relearnd/state

ENV PATH=/opt/server/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RELEARND_CONFIG=configs/production.yaml \
    RELEARND_SERVER__HOST=0.0.0.0 \
    RELEARND_SERVER__PORT=8080 \
    RELEARND_SERVER__STATE=/var/lib/relearnd/state/server.json

USER 10001:10001
VOLUME ["/var/lib/relearnd/registry", "/var/lib/relearnd/state"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/livez', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["relearnd"]
CMD ["serve"]
