// The loop of a robot's perception node: node BUNDLE FRAMES [FRAMES_PER_SECOND] [DEVICE]
// A camera publishes frames at its own rate. The subscription keeps one frame (queue of depth 1): a newer one replaces
// the frame that waits, which is counted as dropped, so that what is segmented is never older than one call. With ROS 2
// `Subscription` is rclcpp's subscription with KeepLast(1), and `on_frame` its callback.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "isnet.hpp"

namespace {

struct Frame {
    int number, height, width;
    size_t pitch;
    std::vector<unsigned char> pixels;  // B, G, R
};

class Subscription {
  public:
    void publish(std::unique_ptr<Frame> frame) {
        std::lock_guard<std::mutex> lock(mutex_);
        published_++;
        dropped_ += waiting_ != nullptr;
        waiting_ = std::move(frame);
        changed_.notify_one();
    }

    void close() {
        std::lock_guard<std::mutex> lock(mutex_);
        closed_ = true;
        changed_.notify_one();
    }

    // Call `on_frame` with the latest frame until the publisher has closed and nothing waits.
    void spin(const std::function<void(const Frame &)> &on_frame) {
        while (std::unique_ptr<Frame> frame = next()) {
            on_frame(*frame);
        }
    }

    int published() const { return published_; }
    int dropped() const { return dropped_; }

  private:
    std::unique_ptr<Frame> next() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return waiting_ || closed_; });
        return std::move(waiting_);
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::unique_ptr<Frame> waiting_;
    int published_ = 0, dropped_ = 0;
    bool closed_ = false;
};

// A bright square that moves over a dark background, in rows with padding.
std::unique_ptr<Frame> draw(int number) {
    const int height = 120, width = 160;
    std::unique_ptr<Frame> frame(new Frame{number, height, width, 512, {}});
    frame->pixels.assign(height * frame->pitch, 40);
    for (int y = 30; y < 90; y++) {
        for (int x = 0; x < 180; x++) {
            frame->pixels[y * frame->pitch + 3 * (number % 100) + x] = 230;
        }
    }
    return frame;
}

void camera(Subscription &subscription, int frames, double rate) {
    auto next = std::chrono::steady_clock::now();
    for (int number = 0; number < frames; number++) {
        subscription.publish(draw(number));
        next += std::chrono::microseconds(static_cast<long long>(1e6 / rate));
        std::this_thread::sleep_until(next);
    }
    subscription.close();
}

int run(const char *bundle, int frames, double rate, const char *device) {
    isnet_trt::start();
    isnet_trt::Options options;
    options.device = device;
    isnet_trt::Segmenter segmenter(bundle, options);
    std::printf("%s\n", segmenter.describe().text);
    std::vector<unsigned char> labels(120 * 160 * segmenter.describe().label_bytes);
    int segmented = 0, failed = 0, latest = -1;

    Subscription subscription;
    std::thread publisher(camera, std::ref(subscription), frames, rate);
    subscription.spin([&](const Frame &frame) {
        try {
            segmenter.segment(isnet_trt::Image(frame.pixels.data(), frame.height, frame.width, "bgr", frame.pitch),
                              isnet_trt::Labels(labels.data()));
            segmented++, latest = frame.number;
        } catch (const isnet_trt::Error &error) {  // a node goes on with the next frame
            std::fprintf(stderr, "frame %d: %s\n", frame.number, error.what());
            failed++;
        }
    });
    publisher.join();
    std::printf("%d frames published, %d segmented, %d dropped, %d failed, the last is %d\n", subscription.published(),
                segmented, subscription.dropped(), failed, latest);
    return failed ? 1 : 0;
}

}  // namespace

int main(int count, char **arguments) {
    const int frames = count > 2 ? std::atoi(arguments[2]) : 0;
    const double rate = count > 3 ? std::atof(arguments[3]) : 30;
    if (frames < 1 || count > 5 || !(rate > 0)) {
        std::fprintf(stderr, "usage: %s BUNDLE FRAMES [FRAMES_PER_SECOND] [DEVICE]\n", arguments[0]);
        return 2;
    }
    try {
        return run(arguments[1], frames, rate, count > 4 ? arguments[4] : "");
    } catch (const isnet_trt::Error &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
