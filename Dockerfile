# The one image of all roles: a static binary, CA certificates, a user. Nothing else.
#
#   docker build --build-arg VERSION=v1.2.3 --build-arg REVISION=$(git rev-parse HEAD) -t athensctl .
#
# Reproducible: the same sources and base image give the same binary. Other platforms
# are compiled on this one: docker buildx build --platform linux/amd64,linux/arm64 .
ARG BUILDPLATFORM=linux/amd64
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS=linux
ARG TARGETARCH=amd64
ARG VERSION=devel
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
      -ldflags "-s -w -buildid= -X github.com/athensctl/athensctl/internal/cli.version=$VERSION" -o /out/athensctl . \
 && mkdir -p /out/etc/ssl/certs /out/tmp /out/var/lib/athensctl \
 && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
 && echo 'athensctl:x:65532:65532::/var/lib/athensctl:/nonexistent' > /out/etc/passwd \
 && chmod 1777 /out/tmp && chown 65532:65532 /out/var/lib/athensctl

FROM scratch
COPY --from=build /out/ /
ARG VERSION=devel
ARG REVISION=unknown
LABEL org.opencontainers.image.title="athensctl" \
      org.opencontainers.image.source="https://github.com/athensctl/athensctl" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV ATHENSCTL_DATA_DIR=/var/lib/athensctl
USER 65532:65532
EXPOSE 3000
ENTRYPOINT ["/athensctl"]
CMD ["serve"]
