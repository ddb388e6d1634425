# The product search in a container, with the CPU version of PyTorch:
#   docker build -t fashion-cnn .
#   docker run -p 8000:8000 -v /srv/shop:/shop:ro fashion-cnn
# /srv/shop holds the run and the catalogue. Options replace the last line, such as those for a catalogue of
# embedding=pretrained, which has no run: docker run … fashion-cnn serve host=0.0.0.0 catalogue=/shop/catalogue
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY fashion_cnn fashion_cnn
COPY scripts/constraints.txt scripts/
ENV PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/fashion-cnn \
    && /opt/fashion-cnn/bin/pip install --index-url https://download.pytorch.org/whl/cpu \
       --constraint scripts/constraints.txt torch torchvision \
    && /opt/fashion-cnn/bin/pip install --constraint scripts/constraints.txt ".[search,photos]"

FROM python:3.11-slim
COPY --from=build /opt/fashion-cnn /opt/fashion-cnn
RUN useradd --create-home --uid 10001 fashion-cnn
USER 10001
WORKDIR /home/fashion-cnn
ENV PATH=/opt/fashion-cnn/bin:$PATH
EXPOSE 8000
HEALTHCHECK --start-period=60s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["fashion-cnn"]
CMD ["serve", "host=0.0.0.0", "run=/shop/run", "catalogue=/shop/catalogue"]
