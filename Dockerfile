# onnxshot as a command: docker build -t onnxshot . && docker run --rm -v "$PWD:/data" onnxshot quantize net.onnx --calib calib/
# Every dependency comes as a wheel, so no compiler is needed. EXTRAS="openvino" adds extras.
FROM python:3.12-slim AS build
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE MANIFEST.in ./
COPY onnxshot onnxshot
COPY calibration calibration
RUN python -m venv /opt/onnxshot \
    && /opt/onnxshot/bin/pip install --no-cache-dir --only-binary :all: "setuptools>=77" \
    && /opt/onnxshot/bin/pip install --no-cache-dir --only-binary :all: --no-binary onnxshot --no-build-isolation ".${EXTRAS:+[$EXTRAS]}" \
    && /opt/onnxshot/bin/pip uninstall --yes setuptools pip

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 onnxshot && mkdir /data && chown onnxshot /data
COPY --from=build /opt/onnxshot /opt/onnxshot
ENV PATH=/opt/onnxshot/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ONNXSHOT_CACHE=/home/onnxshot/.cache/onnxshot
USER onnxshot
WORKDIR /data
ENTRYPOINT ["onnxshot"]
CMD ["--help"]
