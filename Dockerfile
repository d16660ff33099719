# Two stages: the first installs from the lock and compiles every kernel once, the second only holds the result.
FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 NUMBA_CACHE_DIR=/opt/croupier/kernels
WORKDIR /src
RUN python -m venv /opt/croupier/venv
COPY requirements-server.lock .
RUN /opt/croupier/venv/bin/pip install --require-hashes -r requirements-server.lock
COPY pyproject.toml README.md LICENSE ./
COPY croupier croupier
COPY bandits bandits
COPY streaming streaming
COPY server server
COPY loadtest loadtest
RUN /opt/croupier/venv/bin/pip install --no-deps --no-build-isolation .
# Compiled kernels are kept by source file (path, size, time) and CPU; a host with another CPU compiles them again at its
# first start. An image's layers keep times in whole seconds, so the files get such times before their kernels are made.
RUN cd /opt/croupier/venv/lib/python3*/site-packages && find bandits streaming server -name '*.py' \
      -exec sh -c 'for file; do touch -d "@$(stat -c %Y "$file")" "$file"; done' sh {} + \
 && cd / && /opt/croupier/venv/bin/python -m server.warm

FROM python:3.12-slim
ENV PATH=/opt/croupier/venv/bin:$PATH NUMBA_CACHE_DIR=/opt/croupier/kernels PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --home-dir /data croupier && install -d -o croupier /data
COPY --from=build --chown=croupier /opt/croupier /opt/croupier
USER croupier
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=10s CMD ["python", "-c", \
  "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# Keys are needed to listen beyond loopback: CROUPIER_API_KEYS, or a settings file (docs/operations.md).
ENTRYPOINT ["croupier"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data"]
