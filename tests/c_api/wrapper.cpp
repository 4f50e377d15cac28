// The C++ wrapper: wrapper BUNDLE; prints what went wrong, or "all right".
#include <cstdio>
#include <type_traits>

#include "isnet.hpp"

using isnet_trt::Error;
using isnet_trt::Image;
using isnet_trt::LabelMap;
using isnet_trt::Labels;
using isnet_trt::Segmenter;

static_assert(!std::is_copy_constructible<Segmenter>::value && !std::is_copy_assignable<Segmenter>::value, "one owner");
static_assert(std::is_nothrow_move_constructible<Segmenter>::value, "can be kept in a vector");

static int failures = 0;

#define REQUIRE(condition) ((condition) ? void() : (failures++, void(std::printf("%d: %s\n", __LINE__, #condition))))

template <typename Function> static isnet_status status_of(Function function) {
    try {
        function();
    } catch (const Error &error) {
        REQUIRE(*error.what() != 0);
        return error.status();
    }
    return ISNET_OK;
}

int main(int, char **arguments) {
    const std::string bundle = arguments[1];
    REQUIRE(status_of([&] { Segmenter early(bundle); }) == ISNET_NOT_STARTED);
    REQUIRE(status_of([] { isnet_trt::start("/nowhere/python"); }) == ISNET_NO_PYTHON);
    isnet_trt::start();

    isnet_trt::Options options;
    options.threads = 1;
    Segmenter segmenter(bundle, options);
    REQUIRE(segmenter.describe().classes == 3 && segmenter.classes().size() == 3);
    REQUIRE(segmenter.classes()[2].name == "sky" && segmenter.classes()[2].blue == 255);

    std::vector<unsigned char> pixels(10 * 64), labels(10 * 32, 77);
    for (size_t i = 0; i < pixels.size(); i++) {
        pixels[i] = static_cast<unsigned char>(i * i * 7 + i / 5);
    }
    const Image image(pixels.data(), 10, 14, "bgr", 64);
    const LabelMap map = segmenter.segment(image);
    segmenter.segment(image, Labels(labels.data(), 32));
    REQUIRE(map.bytes.size() == 140);
    const int outside[][2] = {{0, 14}, {10, 0}, {-1, 0}, {1, -1}};
    for (const auto &pixel : outside) {
        try {
            map.at(pixel[0], pixel[1]);
            REQUIRE(!"a pixel outside the map");
        } catch (const std::out_of_range &) {
        }
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end the process at such an allocation
    REQUIRE(status_of([&] { segmenter.segment(Image(pixels.data(), 2000000000, 2000000000)); }) == ISNET_NO_MEMORY);
#endif
    for (int row = 0; row < 10; row++) {
        for (int column = 0; column < 32; column++) {
            REQUIRE(labels[row * 32 + column] == (column < 14 ? map.at(row, column) : 77));
        }
    }
    Image surface(pixels.data(), 10, 14, "nv12", 16), planes = surface;
    planes.planes[1] = pixels.data() + 10 * 16, planes.pitches[1] = 16;
    REQUIRE(segmenter.segment(surface).bytes == segmenter.segment(planes).bytes);
    planes.matrix = "bt709", planes.range = "full";
    segmenter.segment(planes, "ms-flip");
    planes.matrix = "bt2100";
    REQUIRE(status_of([&] { segmenter.segment(planes); }) == ISNET_BAD_ARGUMENT);
    REQUIRE(status_of([&] { segmenter.segment(Image(pixels.data(), -1, 14)); }) == ISNET_BAD_IMAGE);
    REQUIRE(status_of([&] { segmenter.segment(image, Labels(labels.data()), pixels.data()); }) == ISNET_BAD_ARGUMENT);
    REQUIRE(status_of([] { Segmenter none("/nowhere"); }) == ISNET_BAD_BUNDLE);

    Segmenter moved = std::move(segmenter);
    REQUIRE(moved.segment(image).bytes == map.bytes);
    REQUIRE(status_of([&] { segmenter.segment(image); }) == ISNET_CLOSED);
    std::vector<Segmenter> several;
    several.push_back(std::move(moved));
    several.emplace_back(bundle, options);
    REQUIRE(several[0].segment(image).bytes == several[1].segment(image).bytes);
    isnet *handle = several[1].handle();
    several.clear();
    REQUIRE(isnet_close(handle) == ISNET_CLOSED);
    std::printf(failures ? "%d failures\n" : "all right\n", failures);
    return failures != 0;
}
