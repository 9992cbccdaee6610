#include "tests/simt/race_shadow.h"

namespace semkv::simt {

bool RaceShadow::Ordered(const Past& past, const ThreadClock& now) const {
  if (past.epoch == 0) return true;
  if (past.cta != now.cta) return scope_ == Scope::kCta;  // another CTA's shared memory is gone
  if (past.thread == now.thread || past.epoch != now.epoch) return true;
  return past.thread / kWarpSize == now.thread / kWarpSize &&
         now.lane_clock[past.thread % kWarpSize] >= past.clock;
}

std::optional<RaceShadow::Race> RaceShadow::NoteRead(Byte& byte, const Past& past,
                                                     const ThreadClock& now) {
  if (scope_ == Scope::kGrid) return std::nullopt;
  std::optional<Race> race;
  if (!Ordered(byte.write, now)) {
    race = Race{byte.write.cta, byte.write.thread,
                byte.write_is_atomic ? AccessKind::kAtomic : AccessKind::kWrite};
  }
  if (byte.readers == nullptr) byte.readers = std::make_unique<Readers>();
  std::vector<Past>& reads = byte.readers->first_warp;
  if (!reads.empty() && reads[0].epoch != past.epoch) *byte.readers = {};
  if (!reads.empty() && reads[0].thread / kWarpSize != past.thread / kWarpSize) {
    byte.readers->other_warp = past;
    return race;
  }
  for (Past& read : reads) {
    if (read.thread == past.thread) {
      read = past;
      return race;
    }
  }
  reads.push_back(past);
  return race;
}

std::optional<RaceShadow::Race> RaceShadow::NoteWrite(Byte& byte, const Past& past, AccessKind kind,
                                                      const ThreadClock& now) {
  std::optional<Race> race;
  const bool both_atomic = kind == AccessKind::kAtomic && byte.write_is_atomic;
  if (!both_atomic && !Ordered(byte.write, now)) {
    race = Race{byte.write.cta, byte.write.thread,
                byte.write_is_atomic ? AccessKind::kAtomic : AccessKind::kWrite};
  }
  if (byte.readers != nullptr) {
    for (const Past& read : byte.readers->first_warp) {
      if (!Ordered(read, now)) race = Race{read.cta, read.thread, AccessKind::kRead};
    }
    const std::optional<Past>& other = byte.readers->other_warp;
    if (other.has_value() && !Ordered(*other, now)) {
      race = Race{other->cta, other->thread, AccessKind::kRead};
    }
    byte.readers.reset();
  }
  byte.write = past;
  byte.write_is_atomic = kind == AccessKind::kAtomic;
  return race;
}

std::optional<RaceShadow::Race> RaceShadow::Note(int64_t offset, int64_t size, AccessKind kind,
                                                 const ThreadClock& now) {
  const Past past = {now.epoch, now.cta, now.thread, now.lane_clock[now.thread % kWarpSize]};
  const size_t end = static_cast<size_t>(offset + size);
  if (bytes_.size() < end) bytes_.resize(end);
  std::optional<Race> race;
  for (int64_t i = offset; i < offset + size; ++i) {
    const std::optional<Race> found = kind == AccessKind::kRead
                                          ? NoteRead(bytes_[i], past, now)
                                          : NoteWrite(bytes_[i], past, kind, now);
    if (found.has_value()) race = found;
  }
  return race;
}

}  // namespace semkv::simt
