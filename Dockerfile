# docker build -t tessera .        (docs/DEPLOY.md)
# The image holds what the Debian package holds: one way to build, one layout.

FROM debian:12 AS build
# git tells the commit, and the time that makes the package reproducible.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Packages first: they change less often than the sources.
COPY scripts/install scripts/packages.txt scripts/
RUN scripts/install
COPY . .
RUN scripts/package --out /packages deb

FROM debian:12-slim
# Before the package, which takes a user that is there: Kubernetes wants a number that stays.
RUN groupadd --gid 10001 tessera && useradd --uid 10001 --gid tessera --home-dir /var/lib/tessera \
    --no-create-home --shell /usr/sbin/nologin tessera
RUN --mount=type=bind,from=build,source=/packages,target=/packages \
    apt-get update && apt-get install --yes --no-install-recommends /packages/tessera_*.deb \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENV TESSERA_HOST=0.0.0.0 TESSERA_LOG=json
STOPSIGNAL SIGTERM
# 503 while loading: a large model needs a longer start period.
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s \
    CMD ["tessera", "doctor", "--server", "http://127.0.0.1:8080"]
ENTRYPOINT ["tessera"]
CMD ["serve"]
