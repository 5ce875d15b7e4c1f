# The image is the static binary and an empty /data that its user may write to.
# make up builds both files first; nothing is pulled.
FROM scratch
COPY bin/muster /muster
COPY --chown=65532:65532 bin/image/ /
USER 65532:65532
ENTRYPOINT ["/muster"]
CMD ["server", "--config", "/etc/muster/muster.yaml"]
