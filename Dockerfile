# syntax=docker/dockerfile:1

# Schemas are carried by pg_dump and pg_restore, which must be at least as new as the servers they read. Debian's trixie
# has version 17; for newer servers build with another suite (DEBIAN=sid-slim).
ARG DEBIAN=trixie-slim

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /rehome ./cmd/rehome

FROM debian:${DEBIAN}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates postgresql-client tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rehome
COPY --from=build /rehome /usr/local/bin/rehome
USER 10001:10001
# The process keeps nothing that matters on its disk: a read-only root with a /tmp is enough.
ENV REHOME_LISTEN=0.0.0.0:8080 REHOME_PG_LISTEN=0.0.0.0:6432
EXPOSE 8080 6432
STOPSIGNAL SIGTERM
# Orchestrators ask /livez and /readyz; the image needs no probe of its own.
ENTRYPOINT ["rehome"]
CMD ["server"]
