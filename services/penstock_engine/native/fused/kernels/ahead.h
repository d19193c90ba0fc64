// Keys and values that will be read soon, asked of memory a few lines at a time while others are worked on.
//
// A cache beyond the processor's own comes at a tenth of its speed unless it is asked early: a tile's heads
// are read in turns, in an order that no processor foresees. Asking for all of a tile at once would
// have to wait for free buffers as long as reading it does.
#pragma once

namespace penstock {

template <typename Element, int most>
class Ahead {
 public:
  Element* at[most];  // keys of the positions that come next

  // So many of them: of each two parts of so many bytes, the second one so many bytes behind the first.
  void begin(int positions, int bytes, int apart) {
    positions_ = positions;
    bytes_ = bytes;
    apart_ = apart;
    next_ = offset_ = 0;
  }

  void fetch(int lines) {
    for (; lines > 0 && next_ < positions_; lines -= 2) {
      const char* line = reinterpret_cast<const char*>(at[next_]) + offset_;
      __builtin_prefetch(line, 0, kSecondLevel);
      __builtin_prefetch(line + apart_, 0, kSecondLevel);
      offset_ += kLine;
      if (offset_ >= bytes_) offset_ = 0, next_++;
    }
  }

 private:
  static constexpr int kLine = 64, kSecondLevel = 2;

  int positions_ = 0, bytes_ = 0, apart_ = 0, next_ = 0, offset_ = 0;
};

}  // namespace penstock
