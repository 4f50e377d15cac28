// isnet_trt for C++ (C++11 and later): isnet.h with objects that close themselves and exceptions.
#ifndef ISNET_HPP
#define ISNET_HPP

#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "isnet.h"

namespace isnet_trt {

/// A call failed; `status()` tells the kinds of errors apart.
class Error : public std::runtime_error {
  public:
    Error(int status, const std::string &message) : std::runtime_error(message), status_(status) {}
    isnet_status status() const noexcept { return static_cast<isnet_status>(status_); }

  private:
    int status_;
};

inline void check(int status, const char *message) {
    if (status != ISNET_OK) {
        throw Error(status, message);
    }
}

/// isnet_start; an empty `python` is the interpreter that the library was built for.
inline void start(const std::string &python = "") {
    char error[ISNET_ERROR] = "";
    check(isnet_start_abi(ISNET_ABI_VERSION, python.c_str(), error), error);
}

struct Options {
    std::string preset, engine, device;
    int threads = 0;
};

/// An image in the caller's memory; `planes`, `pitches`, `matrix` and `range` may be set afterwards.
struct Image : isnet_image {
    Image(const void *data, int rows, int columns, const char *pixel_format = "rgb", size_t pitch = 0)
        : isnet_image(ISNET_IMAGE) {
        planes[0] = data, pitches[0] = pitch, height = rows, width = columns, format = pixel_format;
    }
};

/// Memory of the caller for a label map.
struct Labels : isnet_labels {
    explicit Labels(void *memory, size_t row_pitch = 0, const char *where = nullptr) : isnet_labels(ISNET_LABELS) {
        data = memory, pitch = row_pitch, device = where;
    }
};

/// A label map of its own: height x width labels in rows without padding.
struct LabelMap {
    int height = 0, width = 0;
    size_t label_bytes = 1;
    std::vector<unsigned char> bytes;

    /// The label of a pixel; std::out_of_range outside the map.
    unsigned at(int row, int column) const {
        if (row < 0 || column < 0 || row >= height || column >= width) {
            throw std::out_of_range("the row or column is outside the label map");
        }
        const unsigned char *label = &bytes.at((static_cast<size_t>(row) * width + column) * label_bytes);
        std::uint16_t wide = 0;
        return label_bytes == 1 ? *label : (std::memcpy(&wide, label, sizeof wide), wide);
    }
};

struct Class {
    std::string name;
    unsigned char red, green, blue;
};

/// An open bundle. Calls from several threads take turns; open one per worker thread for parallel work.
class Segmenter {
  public:
    explicit Segmenter(const std::string &bundle, const Options &options = Options()) {
        isnet_options own = ISNET_OPTIONS;
        own.preset = optional(options.preset), own.engine = optional(options.engine);
        own.device = optional(options.device), own.threads = options.threads;
        char error[ISNET_ERROR] = "";
        check(isnet_open_with(bundle.c_str(), &own, &handle_, error), error);
    }
    Segmenter(Segmenter &&other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
    Segmenter &operator=(Segmenter &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Segmenter(const Segmenter &) = delete;
    Segmenter &operator=(const Segmenter &) = delete;
    ~Segmenter() { close(); }

    void close() noexcept {
        isnet_close(handle_);
        handle_ = nullptr;
    }

    isnet *handle() const noexcept { return handle_; }

    isnet_description describe() const {
        isnet_description result = ISNET_DESCRIPTION;
        char error[ISNET_ERROR] = "";
        check(isnet_describe(handle_, &result, error), error);
        return result;
    }

    std::vector<Class> classes() const {
        std::vector<Class> result;
        for (size_t label = 0, count = describe().classes; label < count; label++) {
            isnet_class entry = ISNET_CLASS;
            char error[ISNET_ERROR] = "";
            check(isnet_describe_class(handle_, label, &entry, error), error);
            result.push_back({entry.name, entry.color[0], entry.color[1], entry.color[2]});
        }
        return result;
    }

    /// Into the caller's memory; `stream` is a CUDA stream, with images and label maps in GPU memory.
    void segment(const isnet_image &image, const isnet_labels &labels, const void *stream = nullptr,
                 const std::string &preset = "") {
        isnet_call call = ISNET_CALL;
        call.stream = stream, call.preset = optional(preset);
        char error[ISNET_ERROR] = "";
        check(isnet_segment_with(handle_, &image, &labels, &call, error), error);
    }

    LabelMap segment(const isnet_image &image, const std::string &preset = "") {
        if (image.height < 1 || image.width < 1) {
            throw Error(ISNET_BAD_IMAGE, "height and width of an image must be positive");
        }
        LabelMap result;
        result.height = image.height, result.width = image.width, result.label_bytes = describe().label_bytes;
        try {
            result.bytes.resize(static_cast<size_t>(image.height) * image.width * result.label_bytes);
        } catch (const std::exception &) {  // bad_alloc, length_error
            throw Error(ISNET_NO_MEMORY, "there is too little memory for the label map of an image of this size");
        }
        segment(image, Labels(result.bytes.data()), nullptr, preset);
        return result;
    }

  private:
    static const char *optional(const std::string &text) { return text.empty() ? nullptr : text.c_str(); }

    isnet *handle_ = nullptr;
};

}  // namespace isnet_trt
#endif
