# The service without the embedded Postgres. Needs BuildKit: docker build -t datastorage .
# Behind a proxy with its own certificate authority: --secret id=ca,src=<bundle of certificates>
# With what the archive needs, which is as large as all the rest: --build-arg LOCK=requirements-archive.lock
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG LOCK=requirements.lock
# pip is in an environment of its own, so that the service's environment contains only what the service runs.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/datastorage
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 SOURCE_DATE_EPOCH=946684800 PYTHONHASHSEED=0
WORKDIR /src

# What rarely changes comes first. The build backend is pinned by its entry in the development lock file.
COPY ${LOCK} requirements-dev.lock requirements-sbom.lock ./
RUN --mount=type=secret,id=ca,required=false,target=/etc/ssl/certs/ca-certificates.crt \
    sed -n '/^setuptools==/,/[^\]$/p' requirements-dev.lock > build.lock \
 && /build/bin/pip install --require-hashes --only-binary :all: -r build.lock \
 && /build/bin/pip --python /opt/datastorage/bin/python install --no-compile --require-hashes --only-binary :all: -r ${LOCK} \
 && python3 -m venv /sbom && /sbom/bin/pip install --require-hashes --only-binary :all: -r requirements-sbom.lock

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
 && /build/bin/pip --python /opt/datastorage/bin/python install --no-compile --no-deps --no-index dist/*.whl
# Files of packages that nothing here reads: their tests, the sources and symbols of compiled modules, and what rich has for
# colouring source code.
RUN command -v strip >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends binutils; }
RUN cd /opt/datastorage/lib/python3*/site-packages \
 && find . -regex '.*\.\(c\|cpp\|h\|pxd\|pxi\|pyi\|pyx\)' -delete \
 && find . -type d \( -name testing -o -name tests -o -path ./pygments/lexers -o -path ./pygments/styles \) -prune -exec rm -r {} + \
 && find . -name '*.so' -exec strip --strip-unneeded {} +

# Byte code of the standard library too, which the base may lack: on a read-only root file system the service cannot write
# any, and would compile everything again at each start. In one process, since its history can affect the byte code.
ENV PYTHONPYCACHEPREFIX=/opt/datastorage/pycache
RUN /opt/datastorage/bin/python -m compileall -q --invalidation-mode unchecked-hash \
    -x '/(test|tests|testing|ensurepip|distutils|idlelib|lib2to3|pydoc_data|tkinter|turtledemo|unittest|dist-packages)/' \
    /opt/datastorage/lib "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# What the image adds to its base, for scanners of vulnerabilities.
RUN /sbom/bin/cyclonedx-py environment /opt/datastorage/bin/python --pyproject pyproject.toml --output-reproducible \
    --output-file /opt/datastorage/sbom.cdx.json

# One tree with one date: the same sources and locks on the same base make the same layer. Mount the volume for the spool at
# /var/lib/datastorage; any uid may write there. With a read-only root and no volume there is no spool, and the log says so.
RUN mkdir --parents /image/opt /image/var/lib && mkdir --mode 1777 /image/var/lib/datastorage && mv /opt/datastorage /image/opt/ \
 && find /image -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +

FROM ${BASE}
COPY --from=build /image /
ENV PATH=/opt/datastorage/bin:$PATH \
    PYTHONPYCACHEPREFIX=/opt/datastorage/pycache \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_STATE_HOME=/var/lib \
    DATASTORAGE_HOST=0.0.0.0,::
# Any other uid works too: only the spool is written, and everybody can read all files.
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["datastorage", "health"]
# The service handles SIGTERM itself, also as process 1.
ENTRYPOINT ["datastorage"]
CMD ["serve"]
