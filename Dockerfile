# The one image of all roles: a static binary, CA certificates, a user. Nothing else.
#
#   docker build --build-arg VERSION=v1.2.3 --build-arg REVISION=$(git rev-parse HEAD) -t athensctl .
#
# Reproducible: the same sources give the same binary, since Go's version is exact (it is
# go.mod's toolchain too) and neither path nor time nor VCS state gets in. Files carry the
# time of SOURCE_DATE_EPOCH. Dependabot proposes newer base images. A digest behind the tag
# (golang:…@sha256:…) pins the CA certificates too, and Dependabot keeps that up to date.
#
# Both platforms are compiled on the machine that builds, none is emulated:
# docker buildx build --platform linux/amd64,linux/arm64 . An ARG of BuildKit's own
# (BUILDPLATFORM, TARGETARCH…) must not be given a default: it would win.
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
ARG SOURCE_DATE_EPOCH=0
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
      -ldflags "-s -w -buildid= -X github.com/athensctl/athensctl/internal/cli.version=$VERSION" -o /out/athensctl . \
 && mkdir -p /out/etc/ssl/certs /out/tmp /out/var/lib/athensctl \
 && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
 && echo 'athensctl:x:65532:65532::/var/lib/athensctl:/nonexistent' > /out/etc/passwd \
 && chmod 1777 /out/tmp && chown 65532:65532 /out/var/lib/athensctl \
 && find /out -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

FROM scratch
COPY --from=build /out/ /
ARG VERSION=devel
ARG REVISION=unknown
LABEL org.opencontainers.image.title="athensctl" \
      org.opencontainers.image.source="https://github.com/athensctl/athensctl" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV ATHENSCTL_DATA_DIR=/var/lib/athensctl ATHENSCTL_LISTEN=:3000
USER 65532:65532
EXPOSE 3000
ENTRYPOINT ["/athensctl"]
CMD ["serve"]
