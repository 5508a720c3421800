"""A real RTSP server (GStreamer's) that shows the pictures of a folder again and again, as H.264.

Runs on the system's Python, which has GStreamer's bindings: `/usr/bin/python3 tests/rtsp_server.py PORT FOLDER FPS`.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    '( multifilesrc location="{folder}/%d.jpg" start-index=0 stop-index=18 loop=true caps=image/jpeg,framerate={fps}/1 '
    "! jpegdec ! videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 pass=quant quantizer=20 "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


def main() -> None:
    port, folder, fps = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(folder=folder, fps=fps))
    factory.set_shared(True)
    server.get_mount_points().add_factory("/desk", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {port} is taken")
    GLib.MainLoop().run()


main()
